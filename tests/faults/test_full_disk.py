"""A disk that is full to the last byte, before an attempt or in the middle of one."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from runner.config.run_dir import RunDir
from runner.errors import DiskError
from tests.conftest import Ended
from tests.faults.conftest import Disk

FILLING = '''
"""A loss that fills the disk of the run to the last byte, on one rank and at one call."""

import itertools
import os
from pathlib import Path

from user_hooks.points import mean_loss

CALLS = itertools.count(1)


def fill(path, leave):
    with Path(path).open("ab", buffering=0) as file:
        for size in (1 << 16, 1 << 12, 1):
            try:
                while file.write(bytes(size)) == size:
                    pass
            except OSError:
                pass
        os.ftruncate(file.fileno(), file.tell() - leave)


def loss(model, batch, path="", call=6, leave=0):
    if next(CALLS) == call and os.environ.get("RANK", "0") == "0":
        fill(path, leave)
    return mean_loss(model, batch)
'''
PAIR = ["strategy=ddp", "hardware.processes=2"]


def names(path: Path) -> set[str]:
    """Every file in a directory, with its size."""
    return {f"{file.relative_to(path)} {file.stat().st_size}" for file in path.rglob("*") if file.is_file()}


@pytest.mark.fault(
    "the disk is full to the last byte: at a record, at a checkpoint",
    "one sentence says so, the state is failed, the last commit stays",
)
@pytest.mark.parametrize(
    ("saves_at", "code", "placed"),
    [
        pytest.param(600, 12, [], id="at_a_record-single"),
        pytest.param(600, 12, PAIR, id="at_a_record-ddp", marks=pytest.mark.exhaustive),  # rank 0 writes records alone
        pytest.param(3, 8, [], id="at_a_checkpoint-single"),
        pytest.param(3, 8, PAIR, id="at_a_checkpoint-ddp"),
    ],
)
def test_a_run_says_that_the_disk_is_full_and_ends_as_failed(
    project: Path, runner: Callable[..., Ended], disk: Callable[..., Disk], placed: list[str], saves_at: int, code: int
) -> None:
    """Full after the first commit. The file system may have kept some blocks for more records: hundreds do not fit."""
    small = disk(4096)
    (project / "user_hooks" / "filling.py").write_text(FILLING)
    run_dir = RunDir(small.path / "run")
    steps = 3 * saves_at
    argv = [f"run.dir={run_dir.path}", f"run.steps={steps}", f"checkpoint.every_steps={saves_at}", "log.every_steps=1"]
    hook = [
        "loss._target_=user_hooks.filling.loss",
        f"+loss.path={small.path / 'filler'}",
        f"+loss.call={saves_at + 2}",
        "+loss.leave=0",
        "eval.every_steps=null",
    ]
    ended = runner("train", "points", *argv, *hook, *placed, code=code)
    *_, cause, traceback, logs, way_out = [line for line in ended.stderr.splitlines() if line.strip()]
    assert "No space left on device" in cause
    assert traceback.startswith(f"traceback: {run_dir.failures}/")
    assert logs == f"logs: {run_dir.logs}"
    assert way_out == f"To continue from the last checkpoint: runner resume {run_dir.path}"
    assert "Traceback" not in ended.stderr
    status = json.loads(run_dir.status.read_text())
    assert status["state"] == "failed"
    assert not list(run_dir.path.rglob("*.partial-*"))
    assert run_dir.committed_steps() == [saves_at]
    assert all(json.loads(line) for line in run_dir.metrics.read_text().splitlines())
    small.empty()
    resumed = runner("resume", str(run_dir.path), "loss.path=/dev/null", "--allow", "loss", "loss.call=0")
    assert f"continuing after step {saves_at}" in resumed.stderr
    assert run_dir.read_status() == {**run_dir.read_status(), "state": "done", "step": steps}


@pytest.mark.fault("a resume on a full disk", "nothing changes")
def test_a_resume_on_a_full_disk_changes_nothing(
    project: Path, runner: Callable[..., Ended], disk: Callable[..., Disk]
) -> None:
    small = disk(4096)
    run_dir = RunDir(small.path / "run")
    runner("train", "points", f"run.dir={run_dir.path}", "run.stop_at_step=4")
    small.fill()
    before = names(run_dir.path)
    refused = runner("resume", str(run_dir.path), code=12)
    *_, last = refused.stderr.splitlines()
    assert last.startswith("cannot begin the attempt:")
    assert "No space left on device" in last
    assert names(run_dir.path) == before
    assert run_dir.read_status()["state"] == "done"
    small.empty()
    assert runner("resume", str(run_dir.path)).run_dir.read_status()["step"] == 10


@pytest.mark.fault("no room for a new run's directory", "none is left behind")
@pytest.mark.parametrize("leave", [0, 4096, 64 << 10, 280 << 10])
def test_a_run_that_finds_no_room_leaves_no_directory(
    runner: Callable[..., Ended], disk: Callable[..., Disk], leave: int
) -> None:
    small = disk(1024)
    small.fill(leave=leave)
    ended = runner("train", "points", f"run.dir={small.path / 'run'}", code=12)
    assert "No space left on device" in ended.stderr.splitlines()[-1] or "No space left" in ended.stderr
    assert [path.name for path in small.path.iterdir()] == ["filler"]


@pytest.mark.fault("the last state on a full disk", "it is written into the room that was kept")
def test_the_last_status_is_written_on_a_disk_that_is_full(disk: Callable[..., Disk]) -> None:
    small = disk(1024)
    run_dir = RunDir(small.path)
    run_dir.write_running()
    run_dir.metrics.write_text('{"step": 3, "time_s": 0.1, "train/loss": 0.5}\n')
    run_dir.keep_reserve()
    small.fill()
    with pytest.raises(DiskError, match=r"cannot write .*status\.json: No space left on device\. Once that is mended"):
        run_dir.write_running()
    run_dir.write_last(run_dir.failures / "1_rank_0.json", "{}")
    run_dir.write_state("failed")
    assert run_dir.read_status() == {"state": "failed", "step": 3, "metrics": {"train/loss": 0.5}}
    assert not list(small.path.rglob("*.partial-*"))


def test_without_a_reserve_a_full_disk_keeps_the_old_status(disk: Callable[..., Disk]) -> None:
    small = disk(1024)
    run_dir = RunDir(small.path)
    run_dir.write_running()
    small.fill()
    with pytest.raises(OSError, match="No space left on device"):
        run_dir.write_state("failed")
    assert run_dir.read_status()["state"] == "running"
