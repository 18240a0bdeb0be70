"""What the tests of checkpoints share: a world of one, and a way to save a small state."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from runner.checkpoint.retention import Retention
from runner.checkpoint.sharded import Sharded, ShardedCheckpointer
from runner.protocols import Progress, State
from runner.world.solo import SoloWorld


@pytest.fixture
def world() -> SoloWorld:
    return SoloWorld(torch.device("cpu"))


@pytest.fixture
def checkpointer(tmp_path: Path, world: SoloWorld) -> ShardedCheckpointer:
    return Sharded(retention=Retention(keep_last=None)).open(tmp_path, world)


@pytest.fixture
def save(tmp_path: Path, checkpointer: ShardedCheckpointer) -> Callable[..., Path]:
    """Save two tensors that are full of the step's number; returns the checkpoint's directory."""

    def at_step(step: int, **metrics: float) -> Path:
        tensors = {"model.a": torch.full((4, 3), float(step)), "model.b": torch.full((2,), step)}
        state = State(tensors=tensors, values={"step": step})
        checkpointer.save(state, progress=Progress(step=step, position=10 * step), metrics=metrics)
        return tmp_path / "checkpoints" / f"step_{step}"

    return at_step


@pytest.fixture
def blank() -> State:
    """The state that `save` writes, with nothing in it yet."""
    return State(tensors={"model.a": torch.zeros(4, 3), "model.b": torch.zeros(2, dtype=torch.int64)})
