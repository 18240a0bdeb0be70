"""The final state of a run, and what a job's handle does."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from runner.config.run_dir import RunDir
from runner.errors import Interrupted, RunFailed
from runner.launch.attached import AttachedJob
from runner.launch.outcome import check_done, failed, final_state


@pytest.mark.parametrize("before", ["queued", "running"])
@pytest.mark.parametrize(
    ("error", "state"),
    [
        (Interrupted(), "preempted"),
        (KeyboardInterrupt(), "preempted"),
        (RunFailed("the run failed"), "failed"),
        (OSError(), "failed"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_no_error_leaves_a_run_queued_or_running(tmp_path: Path, before: str, error: BaseException, state: str) -> None:
    run_dir = RunDir(tmp_path)
    if before == "queued":
        run_dir.write_status(before, step=3, metrics={"train/loss": 0.5})
    else:
        run_dir.write_running()
        run_dir.metrics.write_text('{"step": 3, "time_s": 0.1, "train/loss": 0.5}\n')
    with pytest.raises(type(error)), final_state(run_dir):
        raise error
    assert run_dir.read_status() == {"state": state, "step": 3, "metrics": {"train/loss": 0.5}}


def test_a_state_that_the_ranks_wrote_is_kept(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path)
    run_dir.write_status("done", step=3, metrics={})
    with pytest.raises(OSError, match="late"), final_state(run_dir):
        raise OSError("late")
    assert run_dir.read_status()["state"] == "done"


def test_a_failure_after_the_ranks_were_done_is_the_end_of_the_run(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path)
    run_dir.write_status("done", step=3, metrics={})
    with pytest.raises(RunFailed), final_state(run_dir):
        raise RunFailed("rank 1 was killed by SIGSEGV")
    assert run_dir.read_status()["state"] == "failed"


def test_a_state_that_cannot_be_written_is_told_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_dir = RunDir(tmp_path)
    run_dir.status.mkdir()
    with pytest.raises(RunFailed), final_state(run_dir):
        raise failed(run_dir, "rank 1 was killed by SIGSEGV")
    assert capsys.readouterr().err.count("The run's state is: failed.") == 1


def test_a_job_that_never_started_its_ranks_has_failed(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path)
    run_dir.write_status("queued", step=0, metrics={})
    with pytest.raises(RunFailed, match=r"the ranks ended, but .*/status\.json says queued\."), final_state(run_dir):
        check_done(run_dir)
    assert run_dir.read_status()["state"] == "failed"


def test_cancelling_an_attached_job_sends_sigterm_to_its_process() -> None:
    received: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: received.append(number))
    job = AttachedJob(run=lambda: None)
    try:
        assert job.attached
        assert job.name == f"process {os.getpid()}"
        job.cancel()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert received == [signal.SIGTERM]


def test_a_job_without_a_spec_fails_and_says_so(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "runner.launch.job", str(tmp_path / "spec.yaml")],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert "spec.yaml cannot be read" in done.stderr
    assert RunDir(tmp_path).read_status()["state"] == "failed"


def test_a_rank_that_nothing_numbered_says_so(tmp_path: Path) -> None:
    words = ["-m", "runner.launch.rank", "toy", str(tmp_path / "spec.yaml")]
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "RankError: this process has no rank: start it with torchrun, srun or mpirun" in done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="needs PR_SET_PDEATHSIG")
def test_a_rank_whose_launcher_died_while_it_started_ends(tmp_path: Path) -> None:
    """Here its launcher is said to be a process that is not its parent any more."""
    words = ["-m", "runner.launch.rank", "toy", str(tmp_path / "spec.yaml"), "1"]
    numbers = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    done = subprocess.run([sys.executable, *words], env={**os.environ, **numbers}, timeout=60, check=False)
    assert done.returncode == 1
    assert not (tmp_path / "logs").exists()
