"""A run of the self-test that fails, or does not end, is ended as a tree and leaves its output."""

import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from runner.errors import DataError
from runner.selftest import child
from runner.selftest.child import RunError, call


def hangs(pid_file: Path) -> None:
    """Starts a process, and neither of the two ends."""
    started = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    pid_file.write_text(f"{os.getpid()} {started.pid}")
    print("about to hang", flush=True)
    while True:
        try:
            time.sleep(600)
        except KeyboardInterrupt:
            continue


def fails() -> None:
    """Raises an error of the project."""
    print(Path.cwd(), flush=True)
    raise DataError("there are no items")


def alive(pid: int) -> bool:
    path = Path(f"/proc/{pid}/stat")
    return path.exists() and path.read_text().rpartition(")")[2].split()[0] != "Z"


def test_what_does_not_end_is_killed_with_what_it_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child, "DUMP_S", 0.5)
    log, pid_file = tmp_path / "log.txt", tmp_path / "pids"
    with pytest.raises(RunError, match="it has not ended after 2 s") as raised:
        call(partial(hangs, pid_file), directory=tmp_path, log=log, timeout_s=2, forks=True)
    assert raised.value.log.read_text() == "about to hang\n"
    pids = [int(pid) for pid in pid_file.read_text().split()]
    deadline = time.monotonic() + 30
    while any(map(alive, pids)):
        assert time.monotonic() < deadline, "the tree is still there"
        time.sleep(0.05)


def test_what_fails_says_so_in_its_log_and_leaves_nothing_here(tmp_path: Path) -> None:
    log, before = tmp_path / "log.txt", Path.cwd()
    with pytest.raises(RunError, match="it ended with exit code 5"):
        call(fails, directory=tmp_path, log=log, timeout_s=60, forks=True)
    assert log.read_text() == f"{tmp_path}\nthere are no items\n"
    assert Path.cwd() == before
