"""Saving in the background: what is committed is the state at the save, and no failure goes unheard."""

import resource
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from runner.checkpoint.background import Background
from runner.checkpoint.retention import Retention
from runner.checkpoint.sharded import Sharded, ShardedCheckpointer
from runner.checkpoint.staging import Staging
from runner.checkpoint.writer import Piece
from runner.errors import CheckpointError
from runner.protocols import Progress, State
from runner.storage.checkpoints import Checkpoints
from runner.world.solo import SoloWorld
from tests.conftest import Ended
from tests.storage.states import open_latest, state_of


@pytest.fixture
def later(tmp_path: Path, world: SoloWorld) -> ShardedCheckpointer:
    return Sharded(asynchronous=True, retention=Retention(keep_last=None)).open(tmp_path, world)


def at(step: int) -> Progress:
    return Progress(step=step, position=0)


@pytest.fixture
def small_files() -> Iterator[Callable[[], None]]:
    """Call it, and no file may grow above 1 MB: writing more fails as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, limits[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_what_is_committed_is_the_state_at_the_save(
    tmp_path: Path, later: ShardedCheckpointer, checkpoints: Checkpoints
) -> None:
    weight = torch.zeros(500_000)
    state = state_of({"model.w": weight, "model.t": weight[:6].view(2, 3).T}, {"nested": {"step": 0}})
    metrics = {"eval/loss": 0.0}
    for step in (1, 2, 3):
        weight.fill_(step)
        state.values["nested"]["step"] = step
        metrics["eval/loss"] = float(step)
        later.save(state, progress=at(step), metrics=metrics)
        weight.fill_(-1.0)
        state.values["nested"]["step"] = -1
        metrics["eval/loss"] = -1.0
    later.wait()
    for step in (1, 2, 3):
        path = tmp_path / "checkpoints" / f"step_{step}"
        w, t = torch.zeros(500_000), torch.zeros(3, 2)
        read = state_of({"model.w": w, "model.t": t})
        checkpoints.open(path).read(read)
        assert set(w.flatten().tolist()) == {step}
        assert set(t.flatten().tolist()) == {step}
        assert read.values == {"nested": {"step": step}}
        assert f'"metrics": {{"eval/loss": {step}.0}}' in (path / "state.json").read_text()


@pytest.mark.parametrize("hear", ["save", "poll", "wait"])
def test_a_disk_that_refuses_is_heard_of_and_the_commit_before_stands(
    hear: str, later: ShardedCheckpointer, checkpoints: Checkpoints, small_files: Callable[[], None]
) -> None:
    state = state_of({"model.w": torch.ones(500_000)})  # 2 MB
    later.save(state, progress=at(1), metrics={})
    later.wait()
    small_files()
    later.save(state, progress=at(2), metrics={})

    def poll() -> None:
        while True:
            later.poll(State)

    calls: dict[str, Callable[[], object]] = {
        "save": lambda: later.save(state, progress=at(3), metrics={}),
        "poll": poll,
        "wait": later.wait,
    }
    with pytest.raises(CheckpointError, match=r"File too large. Free space there, or keep fewer checkpoints"):
        calls[hear]()
    path = checkpoints.latest()
    assert path is not None
    assert list(path.parent.iterdir()) == [path]
    assert path.name == "step_1"


def test_what_cannot_be_stored_is_refused_at_once(later: ShardedCheckpointer) -> None:
    with pytest.raises(CheckpointError, match=r"model.z cannot be saved: safetensors has no dtype complex128"):
        later.save(state_of({"model.z": torch.ones(1, dtype=torch.complex128)}), progress=at(1), metrics={})


def test_a_value_that_json_cannot_say_is_heard_of(later: ShardedCheckpointer) -> None:
    later.save(State(values={"bad": {1}}), progress=at(1), metrics={})
    with pytest.raises(CheckpointError, match=r"values\['bad'\] cannot be saved"):
        later.wait()
    later.wait()  # said once


def test_what_an_action_raises_is_raised_by_who_waits() -> None:
    background = Background()
    background.start(lambda: None)
    background.wait()
    assert not background.failed
    background.start(lambda: Path("/nowhere").rmdir())
    with pytest.raises(FileNotFoundError):
        background.wait()
    assert not background.failed


def test_the_memory_of_a_copy_is_used_again() -> None:
    staging, tensors = Staging(), [torch.arange(3.0), torch.arange(6, dtype=torch.uint8).view(2, 3).T]
    pieces = [Piece("a", "float32", (0,), (3,)), Piece("b", "uint8", (0, 0), (3, 2))]
    first = staging.copy(pieces, tensors)
    assert all(torch.equal(one, other) and one.is_contiguous() for one, other in zip(first, tensors, strict=True))
    tensors[0] += 1
    second = staging.copy(pieces, tensors)
    assert [one.data_ptr() for one in second] == [one.data_ptr() for one in first]
    assert second[0].tolist() == [1.0, 2.0, 3.0]


def test_memory_that_was_reserved_is_what_copies_go_to() -> None:
    """Reserved before the first; a copy that has outgrown it gets more."""
    staging, small = Staging(), [Piece("a", "float32", (0,), (3,))]
    staging.reserve(small)
    first = staging.copy(small, [torch.arange(3.0)])
    assert first[0].tolist() == [0.0, 1.0, 2.0]
    assert staging.copy(small, [torch.ones(3)])[0].data_ptr() == first[0].data_ptr()
    large = [*small, Piece("b", "float32", (0,), (100_000,))]
    copies = staging.copy(large, [torch.zeros(3), torch.ones(100_000)])
    assert [copy.sum().item() for copy in copies] == [0.0, 100_000.0]


def test_the_first_poll_prepares_a_save_and_refuses_what_cannot_be_stored(
    tmp_path: Path, later: ShardedCheckpointer, world: SoloWorld
) -> None:
    with pytest.raises(CheckpointError, match=r"model.z cannot be saved: safetensors has no dtype complex128"):
        later.poll(lambda: state_of({"model.z": torch.ones(1, dtype=torch.complex128)}))
    later.poll(lambda: pytest.fail("it asks once"))
    later.save(state_of({"model.w": torch.ones(5)}), progress=at(1), metrics={})
    later.wait()
    w = torch.zeros(5)
    open_latest(tmp_path, world).read(state_of({"model.w": w}))
    assert w.tolist() == [1.0] * 5


def test_a_run_that_saves_later_continues_bit_by_bit(runner: Callable[..., Ended]) -> None:
    common = ("run.steps=6", "checkpoint.every_steps=1", "checkpoint.asynchronous=true")
    whole = runner("train", "points", *common)
    part = runner("train", "points", *common, "run.stop_at_step=3")
    names = sorted(path.name for path in part.run_dir.checkpoints.iterdir())
    assert names == ["step_1", "step_2", "step_3"]
    rest = runner("resume", str(part.run_dir.path), "run.stop_at_step=null")
    assert rest.metrics() == whole.metrics()
    last = "checkpoints/step_6/rank_0.safetensors"
    assert (rest.run_dir.path / last).read_bytes() == (whole.run_dir.path / last).read_bytes()
