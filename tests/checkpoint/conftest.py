"""What the tests of checkpoints share: a world of one, a way to save a small state, and one to read it."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from runner.checkpoint.retention import Retention
from runner.checkpoint.sharded import Sharded, ShardedCheckpointer
from runner.protocols import Progress, State
from runner.storage.checkpoints import Checkpoints
from runner.world.solo import SoloWorld
from tests.storage.states import state_of


@pytest.fixture
def world() -> SoloWorld:
    return SoloWorld(torch.device("cpu"))


@pytest.fixture
def checkpointer(tmp_path: Path, world: SoloWorld) -> ShardedCheckpointer:
    return Sharded(retention=Retention(keep_last=None)).open(tmp_path, world)


@pytest.fixture
def checkpoints(tmp_path: Path, world: SoloWorld) -> Checkpoints:
    """Those of `checkpointer`, for reading."""
    return Checkpoints(tmp_path / "checkpoints", world)


@pytest.fixture
def save(tmp_path: Path, checkpointer: ShardedCheckpointer) -> Callable[..., Path]:
    """Save two tensors that are full of the step's number; returns the checkpoint's directory."""

    def at_step(step: int, **metrics: float) -> Path:
        tensors = {"model.a": torch.full((4, 3), float(step)), "model.b": torch.full((2,), step)}
        state = state_of(tensors, {"step": step})
        checkpointer.save(state, progress=Progress(step=step, position=10 * step), metrics=metrics)
        return tmp_path / "checkpoints" / f"step_{step}"

    return at_step


@pytest.fixture
def blank() -> State[torch.Tensor]:
    """The state that `save` writes, with nothing in it yet."""
    return state_of({"model.a": torch.zeros(4, 3), "model.b": torch.zeros(2, dtype=torch.int64)})
