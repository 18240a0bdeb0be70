"""Why a run failed: the failure files and the exit codes of its ranks, in one message."""

import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import final

from runner.config.damage import Damaged, warn
from runner.config.failure import Failure, read_failure, write_failure
from runner.config.run_dir import RunDir
from runner.errors import DiskError, HangError
from runner.launch.stacks import innermost_file

LOG_LINES = 20
HINTS: dict[int, str] = {
    signal.SIGKILL: "Usually the kernel ran out of memory (see dmesg): try a smaller batch.micro_items.",
    signal.SIGABRT: "Gloo does so when ranks bring different shapes: does a hook call torch.distributed itself? "
    "Use the hook's parameter `world` (docs/collectives.md); run.debug=true names the call.",
    signal.SIGSEGV: "Native code crashed; the log shows where.",
    signal.SIGBUS: "Usually /dev/shm is full: try loader.workers=0, or give the machine more shared memory.",
}
COMMUNICATION = ("gloo/transport/", "DistBackendError", "DistNetworkError", "DistStoreError", "DistError")
"""What the traceback of a rank contains that lost its connection to another one."""


def report(run_dir: RunDir, failure: Failure) -> None:
    """Put a report into the run's directory, unless the file system does not let it be written."""
    try:
        write_failure(run_dir, failure)
    except OSError as error:
        warn(f"{error.filename} cannot be written: {error.strerror}. It would have said: {failure}")


def lost_connection(failure: Failure) -> bool:
    """Whether it may only follow from what another rank did: this one could not reach it, or waited for it."""
    if failure.error == HangError.__name__:
        return "/torch/" in innermost_file(failure.traceback)
    return any(word in failure.traceback for word in COMMUNICATION)


def read_failures(run_dir: RunDir, *, start: int, unwritten: Sequence[Failure] = ()) -> list[Failure]:
    """The reports of one start, causes before what may follow from them, each earliest first.

    Args:
        run_dir: the run's directory. What cannot be read in it is said on stderr.
        start: which start of the ranks.
        unwritten: reports of that start that the directory did not take.
    """
    found = list(unwritten)
    for path in _reports(run_dir):
        try:
            failure = read_failure(path)
        except (Damaged, DiskError) as unreadable:
            warn(str(unreadable))
            continue
        if failure.start == start:
            found.append(failure)
    return sorted(found, key=lambda failure: (lost_connection(failure), failure.monotonic_ns))


def _reports(run_dir: RunDir) -> list[Path]:
    try:
        return list(run_dir.failures.glob("*.json"))
    except OSError as error:
        warn(f"{run_dir.failures} cannot be read: {error.strerror}.")
        return []


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


def find_cause(
    run_dir: RunDir, *, start: int, exit_codes: Mapping[int, int], unwritten: Sequence[Failure] = ()
) -> Cause:
    """Which rank failed first, and how. No clock on the wall is asked.

    A rank that died without a report comes before any traceback: it could not write one, and the other ranks failed
    when their connections to it broke. Only an abort comes after a rank's own error: NCCL aborts ranks that lost
    another.

    Args:
        run_dir: the run's directory.
        start: which start of the ranks.
        exit_codes: by rank, of the ranks that ended before their launcher ended the others; -n = killed by signal n.
        unwritten: reports that the run's directory did not take.
    """
    failures = read_failures(run_dir, start=start, unwritten=unwritten)
    reported = {failure.rank for failure in failures}
    silent = {rank: code for rank, code in exit_codes.items() if rank not in reported}
    died = [rank for rank, code in silent.items() if -code != signal.SIGABRT]
    raised = [failure for failure in failures if not lost_connection(failure)]
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
    last = f"the last recorded step is {run_dir.last_step()}"
    if code < 0:
        name = signal.Signals(-code).name if -code in signal.valid_signals() else f"signal {-code}"
        first = f"rank {rank} was killed by {name}; {last}. {HINTS.get(-code, '')}".rstrip()
    elif code == 0:
        first = f"rank {rank} ended with exit code 0 before the run was done; {last}. Does a hook call os._exit?"
    else:
        first = f"rank {rank} exited with code {code} without a traceback in {run_dir.failures}; {last}."
    log = run_dir.rank_log(rank)
    lines = _last_lines(log)
    return "\n".join([first, *([f"The end of {log}:"] if lines else []), *(f"    {line}" for line in lines)])


def _last_lines(log: Path) -> list[str]:
    try:
        return log.read_text(errors="replace").splitlines()[-LOG_LINES:]
    except FileNotFoundError:
        return []
    except OSError as error:
        return [f"It cannot be read: {error.strerror}."]
