"""Several models and their optimizers: updated by one loss, or in turns by the phases of a step."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import final

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.nn import Module

from runner.model.named import Call, Cast
from runner.protocols import MicroBatch, MicroBatchLoss, Placed, SavedState, State, StepBatches, Trainable
from runner.protocols.state import MODEL
from runner.strategy.common.around import Around
from runner.teams.joint_optimizer import JointOptimizer
from runner.teams.phases import Phase, Turn
from runner.teams.placed import SeveralPlaced, Team


@final
class SeveralTrainable(Around):
    """All models of a run. Its own step is that of the first team; `turns` has those of all phases."""

    def __init__(
        self, trained: Sequence[Team[Trainable]], frozen: Sequence[Team[Placed]], cast: Cast, evaluated: Call | None
    ) -> None:
        """Hold models that are prepared already.

        Args:
            trained: models that are updated together.
            frozen: models without an optimizer.
            evaluated: the hook that evaluations call; None = there are none.
        """
        super().__init__(trained[0].placed)
        self._trained = trained
        self._cast = cast
        self._placed = SeveralPlaced([*trained, *frozen], cast, evaluated=evaluated)

    @property
    def models(self) -> Mapping[str, Module]:
        """Every model."""
        return self._placed.models

    @property
    def optimizers(self) -> Mapping[str, torch.optim.Optimizer]:
        """The optimizer of each model that is updated."""
        found: dict[str, torch.optim.Optimizer] = {}
        for team in self._trained:
            optimizer = team.placed.optimizers[MODEL]
            found |= optimizer.parts if isinstance(optimizer, JointOptimizer) else {team.names[0]: optimizer}
        return found

    @property
    def exchange_bytes(self) -> int:
        """What all teams exchange."""
        return sum(team.placed.exchange_bytes for team in self._trained)

    def turns(self, phases: Sequence[Phase], batches: StepBatches) -> Iterator[Turn]:
        """The updates of a step, each to be taken before the next one is asked for."""
        rounds = batches.rounds or (batches,)
        for phase in phases:
            self._cast.call = phase.call
            own = self._trained[phase.team]
            with ExitStack() as held:
                for team in self._trained:
                    if team is not own:
                        held.enter_context(_without_gradients(team.placed))
                for each in rounds[len(rounds) - phase.rounds :]:
                    yield Turn(phase.name, _OfAll(own.placed, self.models), each)

    def discard(self) -> None:
        """Drop the gradients of all models."""
        for team in self._trained:
            team.placed.discard()

    def evaluate(self, micro_batches: Iterable[MicroBatch]) -> Iterator[MicroBatchLoss]:
        """Evaluate with all models."""
        return self._placed.evaluate(micro_batches)

    def state_dict(self) -> State[Tensor]:
        """Models and optimizers by the models' names."""
        return self._placed.state_dict()

    def load_state_dict(self, saved: SavedState) -> None:
        """Continue from a checkpoint."""
        self._placed.load_state_dict(saved)


@final
class _OfAll(Around):
    """A team's step, which may call the other models as well."""

    def __init__(self, inner: Trainable, models: Mapping[str, Module]) -> None:
        super().__init__(inner)
        self._models = models

    @property
    def models(self) -> Mapping[str, Module]:
        """Every model."""
        return self._models


@contextmanager
def _without_gradients(trainable: Trainable) -> Iterator[None]:
    """Let backward go through models without leaving gradients in them.

    FSDP keeps the parameters that it gathers, which require gradients as those did from which they were made first. So
    it gets gradients, and they are dropped.
    """
    parameters = [one for model in trainable.models.values() for one in model.parameters() if one.requires_grad]
    plain = [one for one in parameters if not isinstance(one, DTensor)]
    for one in plain:
        one.requires_grad_(False)
    try:
        yield
    finally:
        for one in plain:
            one.requires_grad_(True)
        if len(plain) < len(parameters):
            trainable.discard()
