"""A clock on the wall that is set back and forth by hours while a run is under way, for all of its processes.

A library in front of libc answers their questions for the time of day, so that no clock of the machine is set.
"""

import json
import os
import shutil
import signal
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from itertools import cycle
from pathlib import Path
from typing import final

import psutil
import pytest

from runner.config.run_dir import RunDir
from tests.conftest import Ended, Started, Zygote

LIBRARY = r"""
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static const volatile long *offset;

__attribute__((constructor)) static void open_offset() {
    int file = open(getenv("CLOCK_OFFSET"), O_RDONLY);
    offset = (const volatile long *)mmap(0, sizeof(long), PROT_READ, MAP_SHARED, file, 0);
    close(file);
}

extern "C" int clock_gettime(clockid_t clock, struct timespec *now) noexcept {
    long failed = syscall(SYS_clock_gettime, clock, now);
    if (!failed && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE) && offset) now->tv_sec += *offset;
    return failed;
}

extern "C" int gettimeofday(struct timeval *now, void *zone) noexcept {
    struct timespec found;
    clock_gettime(CLOCK_REALTIME, &found);
    now->tv_sec = found.tv_sec;
    now->tv_usec = found.tv_nsec / 1000;
    return 0;
}

extern "C" time_t time(time_t *now) noexcept {
    struct timespec found;
    clock_gettime(CLOCK_REALTIME, &found);
    if (now) *now = found.tv_sec;
    return found.tv_sec;
}
"""
TROUBLE = '''
"""A loss that notes the time in each step, and brings trouble on one rank, or on all, at one call."""

import itertools
import os
import time
from pathlib import Path

from user_hooks.points import compute_loss

CALLS = itertools.count(1)


def loss(model, batch, notes="", trouble="", rank="1"):
    here = os.environ.get("RANK", "0")
    call = next(CALLS)
    with open(f"{notes}/times_{here}", "a") as times:
        times.write(f"{time.time()}\\n")
    if call == 5 and trouble and rank in (here, "all"):
        Path(notes, f"troubled_{here}").touch()
        if trouble == "fail":
            raise ZeroDivisionError("the hook divides by zero")
        time.sleep(600)
    return compute_loss(model, batch)
'''
HOUR = 3600
PATIENCE_S = 80
PAIR = ["strategy=ddp", "hardware.processes=2"]
LONG = ["run.steps=1000000", "eval.every_steps=null", "checkpoint.every_steps=null", "log.every_steps=1"]


@final
class Clock:
    """The clock of the processes that are started with `environment`: so many seconds from that of the machine."""

    def __init__(self, scratch: Path) -> None:
        library, source = scratch / "clock.so", scratch / "clock.cpp"
        source.write_text(LIBRARY)
        subprocess.run(["g++", "-shared", "-fPIC", "-o", library, source], check=True, capture_output=True, text=True)
        self._offset = scratch / "offset"
        self._offset.write_bytes(struct.pack("=q", 0))
        self.environment = {"LD_PRELOAD": str(library), "CLOCK_OFFSET": str(self._offset)}

    def jump(self, seconds: int) -> None:
        """Set it, this far from the clock of the machine."""
        with self._offset.open("r+b", buffering=0) as file:
            file.write(struct.pack("=q", seconds))


@pytest.fixture(scope="module")
def clock(tmp_path_factory: pytest.TempPathFactory) -> Clock:
    if shutil.which("g++") is None:
        pytest.skip("a clock is set by a library, which needs g++ to be built")
    return Clock(tmp_path_factory.mktemp("clock"))


@pytest.fixture(scope="module")
def clocked(clock: Clock) -> Iterator[Zygote]:
    """Starts commands that go by that clock."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in clock.environment.items():
            patch.setenv(name, value)
        zygote = Zygote()
    yield zygote
    zygote.close()


@pytest.fixture
def notes(tmp_path: Path, project: Path) -> Path:
    """Where the loss of TROUBLE leaves its notes."""
    (project / "user_hooks" / "trouble.py").write_text(TROUBLE)
    path = tmp_path / "notes"
    path.mkdir()
    return path


@pytest.fixture
def train(
    clocked: Zygote, project: Path, clock: Clock, notes: Path, tmp_path: Path
) -> Iterator[Callable[..., Started]]:
    """A run in tmp_path/run, in which the loss notes the time."""
    started: list[Started] = []

    def begin(*words: str) -> Started:
        clock.jump(0)
        hook = ["loss._target_=user_hooks.trouble.loss", f"+loss.notes={notes}"]
        argv = ["train", "points", f"run.dir={tmp_path / 'run'}", *LONG, *hook, *words]
        started.append(clocked.start(argv, cwd=project, scratch=tmp_path, env={}))
        return started[-1]

    yield begin
    for run in started:
        run.kill()  # unless the test has waited for it
        run.poll(30)


def wait_until(run: Started, condition: Callable[[], object], what: str) -> None:
    """Until it holds; fails if the run ends before."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        under_way = psutil.pid_exists(run.pid) and time.monotonic() < deadline
        assert under_way, f"no {what}:\n{run.stdout.read_text()}\n{run.stderr.read_text()}"
        time.sleep(0.01)


def times(notes: Path, rank: int = 0) -> Iterator[float]:
    """What the clock said in each step of a rank."""
    path = notes / f"times_{rank}"
    return map(float, path.read_text().splitlines()) if path.exists() else iter(())


@pytest.mark.fault(
    "The clock on the wall jumps back and forth by hours in a run that goes on.",
    "No hang is seen where there is none, a second attempt is refused, and a signal stops and commits the run.",
)
@pytest.mark.parametrize(
    "placed", [PAIR, pytest.param([], marks=pytest.mark.exhaustive)], ids=["two ranks", "one process"]
)
def test_a_run_goes_on_and_stops_when_it_is_asked(
    train: Callable[..., Started],
    runner: Callable[..., Ended],
    clock: Clock,
    notes: Path,
    tmp_path: Path,
    placed: list[str],
) -> None:
    run_dir = RunDir(tmp_path / "run")
    run = train("hardware.timeout_s=2", *placed)
    step = 0
    end = time.monotonic()
    for hours in cycle((-5, 7)):
        before = step
        wait_until(run, lambda: run_dir.read_status()["step"] > before + 3, "further step")  # noqa: B023  waited for here
        step = run_dir.read_status()["step"]
        end = end if before else time.monotonic() + 3  # longer than the timeout
        if time.monotonic() > end:
            break
        clock.jump(hours * HOUR)
        time.sleep(0.1)
    refused = runner("resume", str(run_dir.path), code=9, timeout_s=PATIENCE_S)
    assert f"{run_dir.path} is in use by process {run.pid} on " in refused.stderr

    clock.jump(-9 * HOUR)
    os.kill(run.pid, signal.SIGTERM)
    ended = run.wait(PATIENCE_S)
    assert ended.code == 130, ended.stderr
    status = run_dir.read_status()
    assert status["state"] == "preempted"
    assert run_dir.committed_steps() == [status["step"]]
    seconds = [json.loads(line)["time_s"] for line in run_dir.metrics.read_text().splitlines()]
    assert seconds == sorted(seconds)
    assert seconds[-1] < HOUR
    found = list(times(notes))
    assert min(found) < time.time() - 4 * HOUR, "the clock has not jumped back"
    assert max(found) > time.time() + 6 * HOUR, "the clock has not jumped forth"


@pytest.mark.fault(
    "The clock on the wall is set back or forth by hours when a rank has failed.",
    "The rank that failed first is named, and not the one that lost its connection to it.",
)
@pytest.mark.parametrize("hours", [-5, pytest.param(7, marks=pytest.mark.exhaustive)])
def test_the_rank_that_failed_first_is_named(
    train: Callable[..., Started], clock: Clock, tmp_path: Path, hours: int
) -> None:
    run_dir = RunDir(tmp_path / "run")
    run = train(*PAIR, "+loss.trouble=fail")
    wait_until(run, lambda: any(run_dir.failures.glob("*.json")), "report")
    clock.jump(hours * HOUR)
    ended = run.wait(PATIENCE_S)
    assert ended.code == 1
    assert "rank 1 failed at step 4: ZeroDivisionError: the hook divides by zero" in ended.stderr
    assert run_dir.read_status()["state"] == "failed"


@pytest.mark.fault(
    "The clock on the wall is set back or forth by hours while a rank hangs.",
    "The hang ends the run after hardware.timeout_s all the same, and the rank that hangs is named.",
)
@pytest.mark.parametrize("hours", [-5, pytest.param(7, marks=pytest.mark.exhaustive)])
def test_a_rank_that_hangs_is_named(
    train: Callable[..., Started], clock: Clock, notes: Path, tmp_path: Path, hours: int
) -> None:
    run = train(*PAIR, "+loss.trouble=hang", "hardware.timeout_s=2")
    wait_until(run, (notes / "troubled_1").exists, "trouble")
    clock.jump(hours * HOUR)
    ended = run.wait(PATIENCE_S)
    assert ended.code == 11
    assert "rank 1 failed at step 5: HangError: no progress for hardware.timeout_s=2 s." in ended.stderr
    assert RunDir(tmp_path / "run").read_status()["state"] == "failed"


@pytest.mark.fault(
    "The clock on the wall is set back by hours after a signal, in a run that does not stop.",
    "The run is ended after launch.grace_s all the same.",
)
@pytest.mark.parametrize(
    "placed", [[], pytest.param(PAIR, marks=pytest.mark.exhaustive)], ids=["one process", "two ranks"]
)
def test_a_run_that_does_not_stop_is_ended(
    train: Callable[..., Started], clock: Clock, notes: Path, tmp_path: Path, placed: list[str]
) -> None:
    run = train(*placed, "+loss.trouble=hang", "+loss.rank=all", "launch.grace_s=1")
    wait_until(run, (notes / "troubled_0").exists, "trouble")
    begun = time.monotonic()
    os.kill(run.pid, signal.SIGTERM)
    clock.jump(-5 * HOUR)
    ended = run.wait(PATIENCE_S)
    assert time.monotonic() - begun >= 1, "it was ended before launch.grace_s"
    assert ended.code == 130, ended.stderr
    assert "interrupted after step 4." in ended.stderr
    assert RunDir(tmp_path / "run").read_status()["state"] == "preempted"
