"""Why a run failed: the failure files and the exit codes of its ranks, in one message."""

import functools
import json
import signal
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any, final

from runner.config.damage import Damaged, read_json, warn
from runner.config.run_dir import RunDir
from runner.errors import CAUSES, HangError
from runner.launch.stacks import innermost_file

LOG_LINES = 20
HINTS: dict[int, str] = {
    signal.SIGKILL: "Usually the kernel ran out of memory (see dmesg): try a smaller batch.micro_items.",
    signal.SIGSEGV: "Native code crashed; the log shows where.",
    signal.SIGBUS: "Usually /dev/shm is full: try loader.workers=0, or give the machine more shared memory.",
}
COMMUNICATION = ("gloo/transport/", "DistBackendError", "DistNetworkError", "DistStoreError", "DistError")
"""What the traceback of a rank contains that lost its connection to another one."""

EXPLAINED = {kind.__name__ for kind in CAUSES if kind is not HangError}
"""Errors whose message says all that helps. Of a hang, the stack is what helps."""


@final
@dataclass(frozen=True, kw_only=True)
class Failure:
    """The report that one failed rank wrote, or its launcher for it."""

    rank: int
    time_ns: int
    """By the clock on the wall, for people."""
    monotonic_ns: int
    """By the machine's monotonic clock, which nobody sets: what came first."""
    start: int
    """Which start of the ranks it belongs to: see Activity.start."""
    step: int
    error: str
    message: str
    traceback: str
    file: Path | None = None
    """The report; None = it was not written."""

    def __str__(self) -> str:
        """What happened. The traceback of an error that explains itself stays in the report."""
        summary = f"{self.error}: {self.message}" if self.message else self.error
        details = f"traceback: {self.file}" if self.file and self.error in EXPLAINED else self.traceback.rstrip()
        return f"rank {self.rank} failed at step {self.step}: {summary}\n{details}"

    @property
    def lost_connection(self) -> bool:
        """Whether it may only follow from what another rank did: this one could not reach it, or waited for it."""
        if self.error == HangError.__name__:
            return "/torch/" in innermost_file(self.traceback)
        return any(word in self.traceback for word in COMMUNICATION)


def write_failure(run_dir: RunDir, failure: Failure) -> None:
    """Put a report into the run's directory, unless the file system does not let it be written."""
    path = run_dir.failures / f"{failure.time_ns}_rank_{failure.rank}.json"
    fields = {name: value for name, value in asdict(failure).items() if name != "file"}
    try:
        run_dir.write_last(path, json.dumps(fields, indent=1) + "\n")
    except OSError as error:
        warn(f"{path} cannot be written: {error.strerror}. It would have said: {failure}")


def read_failures(run_dir: RunDir, *, start: int) -> list[Failure]:
    """The reports of one start, causes before what may follow from them, each earliest first."""
    found = []
    for path in run_dir.failures.glob("*.json"):
        try:
            failure = read_json(path, functools.partial(_failure, path))
        except Damaged as damaged:
            warn(str(damaged))
            continue
        if failure.start == start:
            found.append(failure)
    return sorted(found, key=lambda failure: (failure.lost_connection, failure.monotonic_ns))


class CauseKind(IntEnum):
    """What kind of cause it is. Of the causes that several machines report, the first kind here is the reason."""

    STOPPED = 0
    """A request to stop: whatever fails while ranks are being stopped is not the cause."""
    DIED = 1
    """A rank died without a report, or hung: the others failed when they waited for it."""
    RAISED = 2
    """A rank raised an error of its own."""
    LOST_CONNECTION = 3
    """A rank could not reach another."""
    UNKNOWN = 4


def _failure(path: Path, stored: Any) -> Failure:
    """A report, as it was written.

    Raises:
        KeyError, ValueError, TypeError: it is something else.
    """
    numbers, texts = ("rank", "time_ns", "monotonic_ns", "start", "step"), ("error", "message", "traceback")
    types = dict.fromkeys(numbers, int) | dict.fromkeys(texts, str)
    if not isinstance(stored, dict) or not all(isinstance(stored[name], kind) for name, kind in types.items()):
        raise ValueError("it is not the report of a rank")
    return Failure(**{name: stored[name] for name in types}, file=path)


@final
@dataclass(frozen=True, kw_only=True)
class Cause:
    """Why a run failed."""

    text: str
    kind: CauseKind
    error: str = ""
    """The class that the rank raised; "" = not known."""

    def after(self, num_restarts: int) -> str:
        """The text, with the number of restarts."""
        return f"{self.text}\n(after {num_restarts} restarts)" if num_restarts else self.text


def find_cause(run_dir: RunDir, *, start: int, exit_codes: Mapping[int, int]) -> Cause:
    """Which rank failed first, and how. No clock on the wall is asked.

    A rank that died without a report comes before any traceback: it could not write one, and the other ranks failed
    when their connections to it broke. Only an abort comes after a rank's own error: NCCL aborts ranks that lost
    another.

    Args:
        run_dir: the run's directory.
        start: which start of the ranks.
        exit_codes: by rank, of the ranks that ended before their launcher ended the others; -n = killed by signal n.
    """
    failures = read_failures(run_dir, start=start)
    reported = {failure.rank for failure in failures}
    silent = {rank: code for rank, code in exit_codes.items() if rank not in reported}
    died = [rank for rank, code in silent.items() if -code != signal.SIGABRT]
    raised = [failure for failure in failures if not failure.lost_connection]
    if died:
        return Cause(text=_describe_exit(run_dir, died[0], silent[died[0]]), kind=CauseKind.DIED)
    if raised:
        kind = CauseKind.DIED if raised[0].error == HangError.__name__ else CauseKind.RAISED
        return Cause(text=str(raised[0]), kind=kind, error=raised[0].error)
    if silent:
        rank, code = next(iter(silent.items()))
        return Cause(text=_describe_exit(run_dir, rank, code), kind=CauseKind.DIED)
    if failures:
        return Cause(text=str(failures[0]), kind=CauseKind.LOST_CONNECTION, error=failures[0].error)
    return Cause(text="the ranks failed without reporting a cause.", kind=CauseKind.UNKNOWN)


def _describe_exit(run_dir: RunDir, rank: int, code: int) -> str:
    last = f"the last recorded step is {run_dir.read_status()['step']}"
    if code < 0:
        name = signal.Signals(-code).name if -code in signal.valid_signals() else f"signal {-code}"
        first = f"rank {rank} was killed by {name}; {last}. {HINTS.get(-code, '')}".rstrip()
    elif code == 0:
        first = f"rank {rank} ended with exit code 0 before the run was done; {last}. Does a hook call os._exit?"
    else:
        first = f"rank {rank} exited with code {code} without a traceback in {run_dir.failures}; {last}."
    log = run_dir.rank_log(rank)
    lines = log.read_text(errors="replace").splitlines()[-LOG_LINES:] if log.exists() else []
    return "\n".join([first, *([f"The end of {log}:"] if lines else []), *(f"    {line}" for line in lines)])
