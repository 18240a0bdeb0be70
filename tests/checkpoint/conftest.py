"""What the tests of checkpoints share: a world of one, a way to save a small state, and one to read it."""

import socket
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from runner.checkpoint.retention import Retention
from runner.checkpoint.sharded import Sharded, ShardedCheckpointer
from runner.protocols import Progress, State
from runner.storage.checkpoints import Checkpoints
from runner.world.solo import SoloWorld
from tests.conftest import CHECKOUT, Zygote
from tests.storage.states import state_of

SCRIPT = Path(__file__).with_name("ranks.py")
OnTwoRanks = Callable[..., None]


@pytest.fixture
def world() -> SoloWorld:
    return SoloWorld(torch.device("cpu"))


@pytest.fixture
def on_two_ranks(zygote: Zygote, tmp_path_factory: pytest.TempPathFactory) -> OnTwoRanks:
    """Run a scenario of ranks.py; fails with what the ranks printed."""

    def run(scenario: str, directory: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        rendezvous = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        scratch = tmp_path_factory.mktemp("ranks")
        argv = [scenario, str(directory)]
        ended = zygote.start(argv, cwd=CHECKOUT, scratch=scratch, env=rendezvous, script=SCRIPT).wait(80)
        assert ended.code == 0, ended.stdout + ended.stderr

    return run


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
