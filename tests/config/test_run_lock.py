"""One attempt at a time, whoever comes second and however the first one ends."""

import contextlib
import errno
import fcntl
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from runner.config import run_lock
from runner.config.run_dir import RunDir
from runner.config.run_lock import hold
from runner.errors import DiskError, LaunchError
from tests.conftest import CHECKOUT

HOLDER = """
import os, subprocess, sys, time
from pathlib import Path
from runner.config.run_dir import RunDir
from runner.config.run_lock import hold

run_dir = RunDir(Path(sys.argv[1]))
with hold(run_dir):
    run_dir.write_running()
    run_dir.metrics.write_text('{"step": 7, "time_s": 0.5}\\n')
    if sys.argv[2] == "forks":
        child = os.fork()
        if child == 0:
            time.sleep(60)
        (run_dir.path / "child").write_text(str(child))
    if sys.argv[2] == "spawns":
        child = subprocess.Popen(["sleep", "60"])
        (run_dir.path / "child").write_text(str(child.pid))
    if sys.argv[2] == "reads":
        run_dir.lock.open().close()
    if sys.argv[2] != "ends":
        (run_dir.path / "ready").touch()
        time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[Callable[[str], int]]:
    """A process that holds the lock of the test's directory; its id."""
    started: list[subprocess.Popen[bytes]] = []

    def start(mode: str) -> int:
        words = [sys.executable, "-c", HOLDER, str(tmp_path), mode]
        started.append(subprocess.Popen(words, env={**os.environ, "PYTHONPATH": str(CHECKOUT)}, start_new_session=True))
        deadline = time.monotonic() + 20
        while not (tmp_path / "ready").exists():
            assert time.monotonic() < deadline
            assert started[-1].poll() is None
            time.sleep(0.01)
        return started[-1].pid

    yield start
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # its children too
        process.wait()


def kill(pid: int) -> None:
    """SIGKILL a child of this process, and wait until it has ended."""
    os.kill(pid, signal.SIGKILL)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)


@pytest.mark.parametrize("mode", ["waits", "reads"])
def test_a_second_attempt_is_refused_with_process_host_and_time(
    tmp_path: Path, holder: Callable[[str], int], mode: str
) -> None:
    """Also if the holder has opened the file once more and closed it, which would end a lock of fcntl's."""
    pid = holder(mode)
    with pytest.raises(LaunchError) as refused, hold(RunDir(tmp_path), patience_s=0.2):
        pass
    since = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d[+-]\d{4}"
    who = f"is in use by process {pid} on {re.escape(socket.gethostname())}, since {since}. Two attempts would"
    assert re.search(who, str(refused.value))
    assert str(refused.value).endswith(f"or stop it: kill {pid}")
    assert RunDir(tmp_path).read_status()["state"] == "running"


@pytest.mark.fault("the holder of the lock is killed", "the lock ends with it; the next attempt says so")
def test_the_lock_ends_with_a_killed_holder_and_the_next_one_says_so(
    tmp_path: Path, holder: Callable[[str], int], capsys: pytest.CaptureFixture[str]
) -> None:
    pid = holder("waits")
    kill(pid)
    with hold(RunDir(tmp_path)):
        assert RunDir(tmp_path).read_status() == {"state": "failed", "step": 7, "metrics": {}}
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith(f"warning: process {pid} on {socket.gethostname()}, which ran {tmp_path} since ")
    assert said.endswith("has gone without reporting an end; its last recorded step is 7, and it counts as failed now.")
    with hold(RunDir(tmp_path)):
        pass
    assert capsys.readouterr().err == ""


def test_a_forked_child_keeps_the_directory_locked_when_the_launcher_is_killed(
    tmp_path: Path, holder: Callable[[str], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_lock, "TRANSIENT_S", 0.3)
    pid = holder("forks")
    kill(pid)
    child = int((tmp_path / "child").read_text())
    with (
        pytest.raises(LaunchError, match=rf"process {pid} on .*, has ended, but .* \(process ids: {child}\)"),
        hold(RunDir(tmp_path), patience_s=0.1),
    ):
        pass
    os.kill(child, signal.SIGKILL)
    with hold(RunDir(tmp_path)):
        pass


def test_another_program_that_the_launcher_started_does_not_keep_it_locked(
    tmp_path: Path, holder: Callable[[str], int]
) -> None:
    kill(holder("spawns"))
    with hold(RunDir(tmp_path), patience_s=0):
        pass


def test_an_attempt_that_ended_leaves_nothing_to_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_dir = RunDir(tmp_path)
    with hold(run_dir):
        run_dir.write_status("queued", step=3, metrics={})  # submitted: it runs later, elsewhere
    with hold(run_dir):
        assert run_dir.read_status()["state"] == "queued"
    assert capsys.readouterr().err == ""


def test_a_state_that_could_not_be_written_is_corrected_by_the_next_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = RunDir(tmp_path)
    with hold(run_dir):
        run_dir.write_running()
    with hold(run_dir):
        assert run_dir.read_status()["state"] == "failed"
    assert "has gone without reporting an end" in capsys.readouterr().err


@pytest.mark.fault("a file system that cannot lock", "a warning says that nothing keeps a second attempt out")
@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_that_cannot_lock_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: int
) -> None:
    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with hold(RunDir(tmp_path)):
        pass
    said = capsys.readouterr().err
    assert f"is on a file system that cannot lock files ({os.strerror(number)})" in said
    assert RunDir(tmp_path).lock.read_text() == ""  # nothing that could be taken for a fact


def test_a_holder_elsewhere_is_named_with_its_host(tmp_path: Path, holder: Callable[[str], int]) -> None:
    holder("waits")
    other = json.dumps({"host": "tower", "pid": 41, "since": "2026-01-01 00:00:00+0000"})
    with RunDir(tmp_path).lock.open("r+") as file:
        file.write(other.ljust(511))
    with (
        pytest.raises(LaunchError, match=r"process 41 on tower, since 2026-01-01 .*: on tower: kill 41"),
        hold(RunDir(tmp_path), patience_s=0),
    ):
        pass


def test_a_lock_that_does_not_say_who_holds_it_is_still_a_lock(
    tmp_path: Path, holder: Callable[[str], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_lock, "TRANSIENT_S", 0.2)
    holder("waits")
    with RunDir(tmp_path).lock.open("r+b") as file:
        file.write(b"\xff" * 512)
    with (
        pytest.raises(LaunchError, match=r"another process has locked .*run\.lock and does not say which it is"),
        hold(RunDir(tmp_path), patience_s=0),
    ):
        pass


def test_many_that_only_look_do_not_refuse_each_other(tmp_path: Path) -> None:
    """As the nodes of a run do at the same moment."""
    words = "from pathlib import Path; from runner.config.run_dir import RunDir; from runner.config.run_lock import "
    words += f"check_free; [check_free(RunDir(Path({str(tmp_path)!r}))) for _ in range(50)]"
    env = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
    looking = [subprocess.Popen([sys.executable, "-c", words], env=env) for _ in range(4)]
    assert [process.wait(30) for process in looking] == [0, 0, 0, 0]


def test_a_directory_that_is_not_there_is_named(tmp_path: Path) -> None:
    with (
        pytest.raises(DiskError, match=r"cannot open .*nowhere/run\.lock: No such file or directory\."),
        hold(RunDir(tmp_path / "nowhere")),
    ):
        pass
