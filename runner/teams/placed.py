"""Several models on the ranks of a run, each placed by its own strategy."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Generic, NamedTuple, TypeVar, final

from torch import Tensor
from torch.nn import Module

from runner.model.named import Call, Cast
from runner.protocols import MicroBatch, MicroBatchLoss, Placed, SavedState, State
from runner.strategy.common.placed_module import evaluation_mode
from runner.teams.state import SavedTeam, check_same_models, of_run

P_co = TypeVar("P_co", bound=Placed, covariant=True)


class Team(NamedTuple, Generic[P_co]):
    """Models that one strategy has placed together."""

    names: tuple[str, ...]
    placed: P_co


@final
class SeveralPlaced:
    """All models of a run, by name."""

    def __init__(self, teams: Sequence[Team[Placed]], cast: Cast, *, evaluated: Call | None) -> None:
        """Hold models that are placed already.

        Args:
            teams: the first one's precision is that of evaluations.
            evaluated: the hook that evaluations call; None = there are none.
        """
        self._teams = teams
        self._cast = cast
        self._evaluated = evaluated

    @property
    def models(self) -> Mapping[str, Module]:
        """Every model."""
        return self._cast.models

    def evaluate(self, micro_batches: Iterable[MicroBatch]) -> Iterator[MicroBatchLoss]:
        """Call the loss hook with all models in evaluation mode."""
        first, *others = (team.placed for team in self._teams)
        before, self._cast.call = self._cast.call, self._evaluated
        try:
            with ExitStack() as modes:
                for one in others:
                    for model in one.models.values():
                        modes.enter_context(evaluation_mode(model))
                yield from first.evaluate(micro_batches)
        finally:
            self._cast.call = before
            for one in others:
                for _ in one.evaluate(()):  # of no micro-batch: what the hook gathered is freed
                    pass

    def state_dict(self) -> State[Tensor]:
        """The tensors of every model, by its name, and of its optimizer."""
        whole: State[Tensor] = State()
        for names, placed in self._teams:
            state = of_run(placed.state_dict(), names)
            whole.models |= state.models
            whole.optimizers |= state.optimizers
            whole.values |= state.values
        return whole

    def load_state_dict(self, saved: SavedState) -> None:
        """Continue from a checkpoint."""
        check_same_models([*self.models], saved)
        for names, placed in self._teams:
            placed.load_state_dict(SavedTeam(saved, names))
