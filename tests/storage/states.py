"""States whose tensors are given by the names that they have in files, and the newest checkpoint of a run."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from runner.protocols import State, World
from runner.storage.checkpoints import Checkpoints, SavedCheckpoint
from runner.storage.names import from_names


def state_of(tensors: Mapping[str, Tensor], values: dict[str, Any] | None = None) -> State[Tensor]:
    """A state with these tensors, by name in a file, and these values."""
    state = from_names(tensors)
    state.values = {} if values is None else values
    return state


def latest(run_dir: Path, world: World) -> Path | None:
    """The newest checkpoint of a run."""
    return Checkpoints(run_dir / "checkpoints", world).latest()


def opened(path: Path, world: World) -> SavedCheckpoint:
    """A checkpoint, open for reading."""
    return Checkpoints(path.parent, world).open(path)


def open_latest(run_dir: Path, world: World) -> SavedCheckpoint:
    """The newest checkpoint of a run, open for reading. There must be one."""
    path = latest(run_dir, world)
    assert path is not None
    return opened(path, world)
