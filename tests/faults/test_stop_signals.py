"""Wherever a signal lands that asks a run to stop, its step is finished, committed and called preempted."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from runner.config.run_dir import RunDir
from tests.conftest import Ended, Started
from tests.faults.signals_tree import children, tree, wait_for
from tests.parity.options import placed

LONG = (
    "run.steps=1000000",
    "run.dir=long",
    "eval.every_steps=null",
    "checkpoint.every_steps=null",
    "log.every_steps=1",
)
INTERRUPTED = 130


def check_committed(project: Path, ended: Ended) -> None:
    """The last step that was taken is the one that was committed."""
    run_dir = RunDir(project / "long")
    status = run_dir.read_status()
    assert (ended.code, status["state"]) == (INTERRUPTED, "preempted"), ended.stderr
    assert [path.name for path in run_dir.checkpoints.glob("step_*")] == [f"step_{status['step']}"]
    assert f"interrupted after step {status['step']}. To continue from the last checkpoint: runner resume" in (
        ended.stderr
    )
    assert not run_dir.failures.exists()


@pytest.fixture
def train(project: Path, start: Callable[..., Started]) -> Callable[..., Started]:
    """A long run that has taken some steps."""

    def begin(*words: str) -> Started:
        started = start("train", "points", *LONG, *words)
        wait_for(lambda: RunDir(project / "long").read_status()["step"] >= 3, "third step")
        return started

    return begin


@pytest.mark.fault("SIGTERM to one rank", "the step is finished and committed; the state is preempted")
@pytest.mark.parametrize("strategy", ["ddp", "deepspeed_zero2"])
@pytest.mark.parametrize("rank", [0, 1])
def test_sigterm_to_one_rank(project: Path, train: Callable[..., Started], strategy: str, rank: int) -> None:
    started = train(*placed(strategy, 2))
    os.kill(children(started.pid)[rank], signal.SIGTERM)
    check_committed(project, started.wait(30))


@pytest.mark.fault(
    "a signal to every process of the tree, data workers too",
    "the step is finished and committed; the state is preempted",
)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
@pytest.mark.parametrize("where", [("strategy=ddp", "hardware.processes=2"), ()], ids=["two ranks", "one process"])
def test_a_signal_to_every_process_of_the_tree_data_workers_too(
    project: Path, train: Callable[..., Started], where: tuple[str, ...], number: signal.Signals
) -> None:
    started = train(*where, "loader.workers=1")
    pids = tree(started.pid)
    assert len(pids) == (5 if where else 2), "launcher, two ranks, a worker each; or the process and its worker"
    for pid in pids:
        os.kill(pid, number)
    check_committed(project, started.wait(30))


@pytest.mark.fault("a signal before the ranks have started", "no run is left as queued")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2, signal.SIGQUIT])
def test_no_signal_before_the_ranks_start_leaves_a_run_queued(
    project: Path, start: Callable[..., Started], number: signal.Signals
) -> None:
    started = start("train", "points", *LONG, "strategy=ddp", "hardware.processes=2")
    wait_for((project / "long" / "status.json").exists, "status")
    os.kill(started.pid, number)
    assert started.wait(30).code == INTERRUPTED
    assert RunDir(project / "long").read_status()["state"] == "preempted"
