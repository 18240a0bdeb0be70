"""Saving in the background: what is committed is the state at the save, and no failure goes unheard."""

import resource
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from runner.checkpoint.background import Background
from runner.checkpoint.retention import Retention
from runner.checkpoint.sharded import Sharded, ShardedCheckpointer
from runner.checkpoint.snapshot import Copy
from runner.checkpoint.staging import Staging
from runner.checkpoint.writer import Piece
from runner.errors import CheckpointError
from runner.protocols import Progress, State
from runner.storage.checkpoints import Checkpoints
from runner.storage.integrity import verify_everything
from runner.world.solo import SoloWorld
from tests.conftest import Ended
from tests.parity.options import INDEPENDENT, STRATEGIES, placed, tensors
from tests.storage.states import open_latest, opened, state_of


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
    staging = Staging()
    pieces = [Piece("a", "float32", (0,), (3,)), Piece("b", "uint8", (0, 0), (3, 2))]
    first = staging.rooms(pieces)
    assert [(room.dtype, list(room.shape)) for room in first] == [(torch.float32, [3]), (torch.uint8, [3, 2])]
    assert [one.data_ptr() for one in staging.rooms(pieces)] == [one.data_ptr() for one in first]


def test_memory_that_was_reserved_is_what_copies_go_to() -> None:
    """Reserved before the first; a copy that has outgrown it gets more."""
    staging, small = Staging(), [Piece("a", "float32", (0,), (3,))]
    staging.reserve(small)
    first = staging.rooms(small)
    assert first[0].tolist() == [0.0, 0.0, 0.0]
    assert staging.rooms(small)[0].data_ptr() == first[0].data_ptr()
    rooms = staging.rooms([*small, Piece("b", "float32", (0,), (100_000,))])
    assert [room.numel() for room in rooms] == [3, 100_000]


@pytest.mark.parametrize("tensor", [torch.arange(5.0), torch.arange(6).view(2, 3).T, torch.tensor(True), torch.ones(0)])
def test_a_copy_has_the_bits_of_its_tensor(tensor: Tensor) -> None:
    room = torch.full(tensor.shape, 7, dtype=tensor.dtype)
    copy = Copy("a", tensor, room)
    copy.make()
    assert torch.equal(room, tensor)
    assert copy.is_exact
    room.fill_(0)
    assert copy.is_exact == (not tensor.numel())


def test_what_a_forward_changes_is_copied_before_it(tmp_path: Path, later: ShardedCheckpointer) -> None:
    """A buffer, and a parameter that it changes unseen by autograd, which the first save finds out."""
    tensors = {name: torch.zeros(2) for name in ("w", "moved", "seen")}
    state = state_of({f"model.{name}": tensor for name, tensor in tensors.items()})
    state.buffers = {"model": {"seen"}}
    for step in range(4):
        later.save(state, progress=at(step), metrics={})
        tensors["seen"].add_(0.5)
        tensors["moved"].data.add_(0.5)
        later.finish_copy(after_forward=True)
        for tensor in tensors.values():
            tensor.add_(1)
    later.wait()
    for step in range(4):
        assert saved_at(tmp_path, step, "w", "moved", "seen") == [step, 1.5 * step, 1.5 * step]


def saved_at(run_dir: Path, step: int, *names: str) -> list[float]:
    """The number that fills each tensor of a checkpoint."""
    tensors = {f"model.{name}": torch.zeros(2) for name in names}
    opened(run_dir / "checkpoints" / f"step_{step}", SoloWorld(torch.device("cpu"))).read(state_of(tensors))
    assert all(tensor[0] == tensor[1] for tensor in tensors.values())
    return [tensor[0].item() for tensor in tensors.values()]


def test_a_copy_that_a_forward_spoilt_is_not_committed(
    tmp_path: Path, later: ShardedCheckpointer, caplog: pytest.LogCaptureFixture
) -> None:
    w = torch.zeros(2)
    state = state_of({"model.w": w})
    for step in range(4):
        later.save(state, progress=at(step), metrics={})
        if step >= 2:
            w += 0.5
        later.finish_copy(after_forward=True)
        w += 1
    later.wait()
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step_0", "step_1", "step_3"]
    assert "step_2 is not saved: model.w: a forward changed it for the first time, while it was copied" in caplog.text
    assert saved_at(tmp_path, 3, "w") == [3.5]


def test_nothing_is_committed_before_the_copy_is_complete(tmp_path: Path, later: ShardedCheckpointer) -> None:
    state = state_of({"model.w": torch.zeros(2)})
    later.save(state, progress=at(0), metrics={})
    later.finish_copy(after_forward=True)
    later.save(state, progress=at(1), metrics={})
    time.sleep(0.2)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step_0"]
    later.wait()  # finishes it
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"step_0", "step_1"}


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


# Its base is frozen, and each forward changes a buffer.
ADAPTED = ["train", "points", "model._target_=user_hooks.points.build_adapted_model", "checkpoint.every_steps=1"]


def test_a_run_that_saves_later_and_links_continues_bit_by_bit(runner: Callable[..., Ended]) -> None:
    """The files are those of a run that waits for each save and writes all of it."""
    common = (*ADAPTED, "run.steps=6", "checkpoint.keep_last=null")
    whole = runner(*common, "checkpoint.link_frozen=false")
    part = runner(*common, "checkpoint.asynchronous=true", "run.stop_at_step=3")
    assert sorted(path.name for path in part.run_dir.checkpoints.iterdir()) == ["step_1", "step_2", "step_3"]
    rest = runner("resume", str(part.run_dir.path), "run.stop_at_step=null")
    assert rest.metrics() == whole.metrics()
    assert (distinct_files(whole, 6, frozen=True), distinct_files(rest, 6, frozen=True)) == (6, 1)
    assert all(same_payloads(whole, rest, step) for step in range(1, 7))


@pytest.mark.parametrize(
    "strategy",
    [
        pytest.param(one, marks=() if one in ("fsdp", "deepspeed_zero2") else (pytest.mark.exhaustive,))
        for one in STRATEGIES
        if one != "single"
    ],
)
def test_under_every_strategy_a_copy_is_of_the_state_at_the_save(runner: Callable[..., Ended], strategy: str) -> None:
    """File by file what a save that the loop waits for writes. One process then reads it and writes its own."""
    common = [*ADAPTED, *placed(strategy, 2), "run.steps=6", "run.stop_at_step=4", "checkpoint.keep_last=null"]
    at_once, later = (runner(*common, f"checkpoint.asynchronous={value}") for value in ("false", "true"))
    assert all(same_payloads(at_once, later, step) for step in range(1, 5))
    written = distinct_files(later, 4, frozen=True)
    assert 1 <= written <= 2  # one by each rank that has any
    assert distinct_files(later, 4, frozen=False) == 4 * 2
    allowed = ["--allow", "strategy"] if strategy in INDEPENDENT else []
    alone = runner("resume", str(later.run_dir.path), "run.stop_at_step=null", *placed("single", 1), *allowed)
    assert distinct_files(alone, 6, frozen=True) == written + 1
    last = alone.run_dir.checkpoints / "step_6"
    verify_everything(last)
    base = [tensors(alone, step) for step in (1, 6)]
    assert all(torch.equal(base[0][name], base[1][name]) for name in base[0] if ".base." in name)


def payloads(ended: Ended, step: int) -> dict[str, Path]:
    return {file.name: file for file in (ended.run_dir.checkpoints / f"step_{step}").glob("*.safetensors")}


def same_payloads(one: Ended, other: Ended, step: int) -> bool:
    """Whether all payload files of the checkpoints of a step have the same bytes."""
    first, second = payloads(one, step), payloads(other, step)
    return first.keys() == second.keys() and all(first[n].read_bytes() == second[n].read_bytes() for n in first)


def distinct_files(ended: Ended, steps: int, *, frozen: bool) -> int:
    """How many payload files the checkpoints of so many steps take on the disk."""
    files = [file for step in range(1, steps + 1) for file in payloads(ended, step).values()]
    return len({file.stat().st_ino for file in files if (".frozen." in file.name) == frozen})
