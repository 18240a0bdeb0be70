"""How a launch ended: the last state in status.json, and the error that the command reports."""

import re
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import final

from runner.config.damage import warn
from runner.config.failure import Failure
from runner.config.run_dir import RunDir
from runner.config.task import is_job
from runner.errors import DiskError, Interrupted, RunFailed
from runner.launch.failures import read_failures
from runner.storage.history import NO_OLDER
from runner.world.stop import ENDING_SIGNALS


@final
@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How the ranks of one machine ended."""

    succeeded: bool
    """All of them returned."""
    stop_requested: bool
    """A signal asked the launcher to stop."""
    num_restarts: int
    start: int
    """Tells the last start of the ranks from others, in failure reports."""
    exit_codes: Mapping[int, int]
    """By rank, of the ranks that ended before their launcher ended the others; -n = killed by signal n."""
    unwritten: Sequence[Failure] = ()
    """Reports of that start that the run's directory did not take."""


def check_done(run_dir: RunDir) -> None:
    """Return if status.json says that the run is done. Call it once no rank is running any more.

    Raises:
        Interrupted: the run was asked to stop.
        RunFailed: it is in any other state. A hook may have ended the process, by sys.exit(0) for example.
    """
    state = run_dir.read_status()["state"]
    if state == "preempted":
        raise interrupted(run_dir)
    if state != "done":
        raise failed(run_dir, f"the ranks ended, but {run_dir.status} says {state}. Does a hook call sys.exit?")


def stopped_by_signal(run_dir: RunDir, outcome: Outcome) -> Interrupted:
    """The error for a launch that a signal ended; a rank's failure while it was stopping is reported with it."""
    failures = read_failures(run_dir, start=outcome.start, unwritten=outcome.unwritten)
    return interrupted(run_dir, f"While stopping, {failures[0]}" if failures else "")


def interrupted(run_dir: RunDir, note: str = "") -> Interrupted:
    """The error for a run that was asked to stop: how far it came and how to continue it."""
    how_far = "interrupted" if is_job(run_dir) else f"interrupted after step {run_dir.last_step()}"
    message = f"{how_far}. {_how_to_continue(run_dir)}"
    return Interrupted(f"{message}\n{note}" if note else message)


def failed(run_dir: RunDir, cause: str, *, error: str = "") -> RunFailed:
    """The error for a run that failed: the cause first, then where to look."""
    return RunFailed(f"{cause}\n\nlogs: {run_dir.logs}\n{_how_to_continue(run_dir, cause)}".rstrip(), cause=error)


@contextmanager
def final_state(run_dir: RunDir) -> Iterator[None]:
    """See to it that status.json says how the run ended after the block has raised.

    An Interrupted or a RunFailed says that, whatever the ranks wrote; any other error ends what is queued or running. A
    signal that would end this process raises KeyboardInterrupt instead, where nothing else handles it yet.
    """
    try:
        with _signals_raise():
            yield
    except BaseException as error:
        if isinstance(error, Interrupted | RunFailed) or _is_under_way(run_dir):
            write_final_state(run_dir, "preempted" if isinstance(error, Interrupted | KeyboardInterrupt) else "failed")
        raise


@contextmanager
def _signals_raise() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    deadly = [number for number in ENDING_SIGNALS if signal.getsignal(number) is signal.SIG_DFL]
    for number in deadly:
        signal.signal(number, signal.default_int_handler)
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING_SIGNALS)
        yield
    finally:
        for number in deadly:
            signal.signal(number, signal.SIG_DFL)


def _is_under_way(run_dir: RunDir) -> bool:
    try:
        return run_dir.read_status()["state"] in ("queued", "running")
    except DiskError:
        return True


def write_final_state(run_dir: RunDir, state: str) -> None:
    """Write the last state, unless the file system does not let it be written: the error to report is another one."""
    try:
        run_dir.write_state(state)
    except OSError as error:
        warn(f"{run_dir.status} cannot be brought up to date: {error.strerror}. The run's state is: {state}.")
    except DiskError as error:
        warn(f"{error} The run's state is: {state}.")


def _how_to_continue(run_dir: RunDir, cause: str = "") -> str:
    if NO_OLDER in cause:
        return ""
    if is_job(run_dir):
        return "To continue: the same command again."
    if chosen := re.search(r"--from step_[0-9]+", cause):  # the last checkpoint is corrupted
        return f"To continue from that one: runner resume {run_dir.path} {chosen[0]}"
    try:
        steps = run_dir.committed_steps()
    except OSError as error:
        return f"Once {run_dir.path} can be read again ({error.strerror}), to continue: runner resume {run_dir.path}"
    start = "To continue from the last checkpoint" if steps else "To start again (there is no checkpoint yet)"
    return f"{start}: runner resume {run_dir.path}"
