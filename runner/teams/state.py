"""The state of a team of models, which its strategy knows as one model, by the names of the run."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, final

from torch import Tensor

from runner.errors import CheckpointError
from runner.model.named import prefixed
from runner.protocols import SavedState, State, StoredTensor
from runner.protocols.state import MODEL

T = TypeVar("T")


def of_run(state: State[T], team: Sequence[str]) -> State[T]:
    """The state of a team's strategy as a part of the run's: `student.fc.weight` is `fc.weight` of the student."""
    return State(
        models={name: _own(state.models.get(MODEL, {}), name) for name in team},
        optimizers={name: _own(tensors, name) for tensors in state.optimizers.values() for name in team},
        values={_key(team, key): value for key, value in state.values.items()},
    )


def of_team(state: State[T], team: Sequence[str]) -> State[T]:
    """The inverse of `of_run`, of what a run's state has of this team."""
    begin = _key(team, "")
    return State(
        models={MODEL: dict(prefixed({name: state.models.get(name, {}) for name in team}))},
        optimizers={MODEL: dict(prefixed({name: state.optimizers.get(name, {}) for name in team}))},
        values={key.removeprefix(begin): value for key, value in state.values.items() if key.startswith(begin)},
    )


def check_same_models(names: Sequence[str], saved: SavedState) -> None:
    """Check that a checkpoint has the models of the run.

    Raises:
        CheckpointError: it has others.
    """
    stored = sorted(saved.stored.models)
    if stored != sorted(names):
        raise CheckpointError(
            f"{saved.path} belongs to another run: it has the models {', '.join(stored)}, this one {', '.join(names)}."
        )


@final
class SavedTeam:
    """What a checkpoint has of a team, as its strategy reads it."""

    def __init__(self, saved: SavedState, team: Sequence[str]) -> None:
        self._saved = saved
        self._team = team

    @property
    def path(self) -> Path:
        """The checkpoint's directory."""
        return self._saved.path

    @property
    def stored(self) -> State[StoredTensor]:
        """Names, shapes and dtypes of the team's tensors."""
        return of_team(self._saved.stored, self._team)

    def read(self, state: State[Tensor]) -> None:
        """Load the team's tensors in place, and its values. Collective."""
        whole = of_run(state, self._team)
        self._saved.read(whole)
        state.values = of_team(whole, self._team).values


def _own(tensors: Mapping[str, Any], model: str) -> dict[str, Any]:
    begin = f"{model}."
    return {name.removeprefix(begin): tensor for name, tensor in tensors.items() if name.startswith(begin)}


def _key(team: Sequence[str], key: str) -> str:
    return f"{'+'.join(team)}.{key}"
