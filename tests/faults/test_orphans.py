"""Whatever ends the process that others belong to, they end with it and leave nothing behind."""

import json
import os
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from runner.config.run_dir import RunDir
from tests.conftest import Ended, Started
from tests.faults.signals_tree import alive, children, tree, wait_for

PAIR = ("strategy=ddp", "hardware.processes=2")
LONG = ("run.steps=1000000", "eval.every_steps=null", "checkpoint.every_steps=null")
SLOW = """
import time
from runner import Data
from user_hooks.points import Points


class Slow(Points):
    def __getitem__(self, index):
        time.sleep(0.2)
        return super().__getitem__(index)


def build_data():
    return Data(train=Slow(50, 0), eval=None)
"""


@pytest.mark.fault("a sweep is killed", "its job commits and ends")
@pytest.mark.parametrize("where", [(), PAIR], ids=["one process a job", "two ranks a job"])
def test_the_job_of_a_killed_sweep_commits_and_ends(
    project: Path, start: Callable[..., Started], where: tuple[str, ...]
) -> None:
    words = ("train", "points", "-m", "optimizer.lr=0.1,0.2", "sweep.dir=sweep", *LONG, *where)
    started = start(*words)
    job = RunDir(project / "sweep" / "0")
    wait_for(lambda: job.read_status()["step"] >= 3, "third step")
    below = tree(started.pid)[1:]
    assert len(below) == (3 if where else 1)
    os.kill(started.pid, signal.SIGKILL)
    started.wait(30)
    wait_for(lambda: not alive(below), "end of the job", timeout_s=10)
    status = job.read_status()
    assert status["state"] == "preempted"
    assert (job.checkpoints / f"step_{status['step']}").is_dir()
    assert not (project / "sweep" / "1").exists()


@pytest.mark.parametrize(
    "number",
    [
        signal.SIGINT,
        signal.SIGTERM,
        *(pytest.param(one, marks=pytest.mark.exhaustive) for one in (signal.SIGHUP, signal.SIGUSR1)),
    ],
)
def test_a_sweep_that_is_asked_to_stop_passes_it_on(
    project: Path, start: Callable[..., Started], number: signal.Signals
) -> None:
    started = start("train", "points", "-m", "optimizer.lr=0.1,0.2", "sweep.dir=sweep", *LONG, "launch.grace_s=20")
    job = RunDir(project / "sweep" / "0")
    wait_for(lambda: job.read_status()["step"] >= 3, "third step")
    below = tree(started.pid)[1:]
    os.kill(started.pid, number)
    assert started.wait(30).code == 130
    assert not alive(below)
    assert job.read_status()["state"] == "preempted"
    assert len(list(job.checkpoints.glob("step_*"))) == 1


@pytest.mark.fault("a rank with data workers is killed", "they end at once")
@pytest.mark.parametrize("where", [(), PAIR], ids=["one process", "two ranks"])
def test_data_workers_end_at_once_with_a_killed_rank(
    project: Path, start: Callable[..., Started], where: tuple[str, ...]
) -> None:
    """Torch's own check finds out after 5 s, and not before an item has been read."""
    (project / "user_hooks" / "slow.py").write_text(SLOW)
    data = ("data._target_=user_hooks.slow.build_data", "loader.workers=2", "run.dir=run")
    started = start("train", "points", *LONG, *data, *where)
    wait_for(lambda: RunDir(project / "run").read_status()["step"] >= 1, "first step")
    rank = children(started.pid)[-1] if where else started.pid
    workers = children(rank)
    assert len(workers) == 2
    os.kill(rank, signal.SIGKILL)
    wait_for(lambda: not alive(workers), "end of the workers", timeout_s=1)
    started.wait(30)


@pytest.mark.fault("a rank fails", "no file is left in the system's temporary directory")
@pytest.mark.parametrize("fork", ["true", "false"])
def test_a_failed_rank_leaves_no_pickled_traceback(runner: Callable[..., Ended], tmp_path: Path, fork: str) -> None:
    """Torch writes one into the system's temporary directory, which no run removes."""
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    failing = ("loss._target_=user_hooks.points.failing_loss", "+loss.rank='1'", f"launch.fork={fork}")
    ended = runner("train", "points", *failing, *PAIR, code=1, env={"TMPDIR": str(temporary)}, forks=True)
    assert "ZeroDivisionError: the hook divides by zero" in ended.stderr
    assert not list(temporary.glob("pytorch-errorfile-*"))
    assert not [path for path in Path(tempfile.gettempdir()).glob("pytorch-errorfile-*") if _is_of(path, tmp_path)]


def _is_of(path: Path, project: Path) -> bool:
    return str(project).encode() in path.read_bytes()


@pytest.mark.fault("a rank's clock is set back before it fails", "its traceback is shown all the same")
def test_a_clock_that_is_set_back_changes_nothing(runner: Callable[..., Ended], project: Path) -> None:
    """The wall clock of the rank that fails stands an hour before its launcher's, and its log is none the wiser."""
    hook = """
import time
from user_hooks.points import failing_loss

before = time.time_ns
time.time_ns = lambda: before() - 3600 * 10**9
"""
    (project / "user_hooks" / "late.py").write_text(hook)
    failing = ("loss._target_=user_hooks.late.failing_loss", "+loss.rank='1'")
    ended = runner("train", "points", *failing, *PAIR, code=1)
    assert "rank 1 failed at step 2: ZeroDivisionError: the hook divides by zero" in ended.stderr
    assert "without a traceback" not in ended.stderr
    (report,) = ended.run_dir.failures.glob("*_rank_1.json")
    assert json.loads(report.read_text())["error"] == "ZeroDivisionError"
