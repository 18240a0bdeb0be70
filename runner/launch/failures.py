"""What made a run fail: found among the failure files and the exit codes of its ranks, told in one message."""

import json
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

from runner.config.run_dir import RunDir

LOG_LINES = 20
HINTS: dict[int, str] = {
    signal.SIGKILL: "Often that is the kernel, out of memory (dmesg says so): try a smaller batch.micro_items.",
    signal.SIGSEGV: "Native code crashed; where it was stands in the log.",
    signal.SIGBUS: "Often /dev/shm is full: try loader.workers=0, or give the machine more shared memory.",
}


@final
@dataclass(frozen=True, kw_only=True)
class Failure:
    """What one failed rank left behind."""

    rank: int
    time_ns: int
    step: int
    error: str
    message: str
    traceback: str

    def __str__(self) -> str:
        summary = f"{self.error}: {self.message}" if self.message else self.error
        return f"rank {self.rank} failed at step {self.step}: {summary}\n{self.traceback.rstrip()}"


def read_failures(run_dir: RunDir, *, since_ns: int) -> list[Failure]:
    """What ranks left behind since then, earliest first: the first is the cause, the others its echoes."""
    found = []
    for path in run_dir.failures.glob("*.json"):
        try:
            stored = json.loads(path.read_text())
        except json.JSONDecodeError:
            continue  # torn: its rank was ended while it wrote, by the agent, so another rank failed before it
        failure = Failure(**{name: stored[name] for name in Failure.__dataclass_fields__})
        if failure.time_ns >= since_ns:
            found.append(failure)
    return sorted(found, key=lambda failure: failure.time_ns)


@final
@dataclass(frozen=True, kw_only=True)
class Cause:
    """What made a run fail, in words."""

    text: str
    time_ns: int
    """When; 0 = a rank died in silence, before whatever others could tell."""
    error: str = ""
    """The class that the rank raised; "" = not known."""

    def after(self, num_restarts: int) -> str:
        """In words, with the restarts that did not help."""
        return f"{self.text}\n(after {num_restarts} restarts)" if num_restarts else self.text


def find_cause(run_dir: RunDir, *, since_ns: int, exit_codes: Mapping[int, int]) -> Cause:
    """Which rank failed first, and how.

    Args:
        run_dir: the run's.
        since_ns: when the ranks were started for the last time.
        exit_codes: of each rank that did not end well, the one seen first leading; minus the signal that killed it.

    A rank that died in silence comes before any traceback: it could write nothing, and the others' connections to it
    broke. SIGTERM is left out, since the agent ends the others with it.
    """
    left = read_failures(run_dir, since_ns=since_ns)
    silent = {rank: code for rank, code in exit_codes.items() if rank not in {failure.rank for failure in left}}
    for rank, code in silent.items():
        if -code != signal.SIGTERM:
            return Cause(text=_describe_exit(run_dir, rank, code), time_ns=0)
    if left:
        return Cause(text=str(left[0]), time_ns=left[0].time_ns, error=left[0].error)
    if silent:
        return Cause(text=_describe_exit(run_dir, *next(iter(silent.items()))), time_ns=time.time_ns())
    return Cause(text="the ranks failed and left no word about it.", time_ns=time.time_ns())


def _describe_exit(run_dir: RunDir, rank: int, code: int) -> str:
    known = f"step {run_dir.read_status()['step']} is the last on record"
    if code < 0:
        name = signal.Signals(-code).name if -code in signal.valid_signals() else f"signal {-code}"
        first = f"rank {rank} was killed by {name}; {known}. {HINTS.get(-code, '')}".rstrip()
    else:
        first = f"rank {rank} exited with code {code} and left no traceback in {run_dir.failures}; {known}."
    log = run_dir.rank_log(rank)
    lines = log.read_text(errors="replace").splitlines()[-LOG_LINES:] if log.exists() else []
    return "\n".join([first, *([f"The end of {log}:"] if lines else []), *(f"    {line}" for line in lines)])
