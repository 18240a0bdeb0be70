"""A file system that becomes read-only in the middle of a run, as ext4 does after an error of its device."""

import subprocess
import time
from collections.abc import Callable

import pytest

from runner.config.run_dir import RunDir
from tests.conftest import Ended, Started
from tests.faults.conftest import Disk, unmount

PAIR = ["strategy=ddp", "hardware.processes=2"]


@pytest.mark.fault(
    "the file system becomes read-only under a run", "the terminal says so; the next attempt corrects the state"
)
@pytest.mark.parametrize("placed", [[], PAIR], ids=["single", "ddp"])
def test_a_run_says_so_and_the_next_attempt_corrects_its_state(
    start: Callable[..., Started], runner: Callable[..., Ended], ext4: Disk, placed: list[str]
) -> None:
    run_dir = RunDir(ext4.path / "run")
    run = start("train", "points", f"run.dir={run_dir.path}", "run.steps=1000000", *placed)
    deadline = time.monotonic() + 60
    while not (run_dir.metrics.exists() and run_dir.read_status()["step"] > 20):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    subprocess.run(["mount", "-o", "remount,abort", str(ext4.path)], check=True)
    ended = run.wait(60)
    assert "Read-only file system" in ended.stderr
    assert (
        "status.json cannot be brought up to date: Read-only file system. The run's state is: failed." in ended.stderr
    )
    assert ended.stderr.strip().endswith(f"To continue from the last checkpoint: runner resume {run_dir.path}")
    assert ended.code in (1, 8, 12)  # which file was the first that could not be written
    image = ext4.path.parent / "image"
    unmount(ext4.path, image)
    subprocess.run(["e2fsck", "-fy", str(image)], check=False, capture_output=True)
    subprocess.run(["mount", "-o", "loop", str(image), str(ext4.path)], check=True)
    again = runner("resume", str(run_dir.path), f"run.steps={max(run_dir.committed_steps()) + 3}")
    # What was not flushed when the journal was aborted may be zeros; that is named, too.
    assert "has gone without reporting an end" in again.stderr or "status.json is damaged: it is empty" in again.stderr
    assert run_dir.read_status()["state"] == "done"
