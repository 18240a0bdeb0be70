"""Why a run failed: the failure files and the exit codes of its ranks, in one message."""

import json
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import final

from runner.config.run_dir import RunDir
from runner.errors import CAUSES

LOG_LINES = 20
HINTS: dict[int, str] = {
    signal.SIGKILL: "Usually the kernel ran out of memory (see dmesg): try a smaller batch.micro_items.",
    signal.SIGSEGV: "Native code crashed; the log shows where.",
    signal.SIGBUS: "Usually /dev/shm is full: try loader.workers=0, or give the machine more shared memory.",
}


@final
@dataclass(frozen=True, kw_only=True)
class Failure:
    """The report that one failed rank wrote."""

    rank: int
    time_ns: int
    step: int
    error: str
    message: str
    traceback: str
    file: Path | None = None
    """The report; None = it was not written."""

    def __str__(self) -> str:
        """What happened. An error of the runner's own says all that helps, so its traceback stays in the report."""
        summary = f"{self.error}: {self.message}" if self.message else self.error
        expected = self.file is not None and self.error in {kind.__name__ for kind in CAUSES}
        details = f"traceback: {self.file}" if expected else self.traceback.rstrip()
        return f"rank {self.rank} failed at step {self.step}: {summary}\n{details}"


def read_failures(run_dir: RunDir, *, since_ns: int) -> list[Failure]:
    """The reports since then, earliest first: the first is the cause, the others usually follow from it."""
    found = []
    for path in run_dir.failures.glob("*.json"):
        try:
            stored = json.loads(path.read_text())
        except json.JSONDecodeError:
            continue  # incomplete: the agent killed the rank while it wrote, so another rank had failed before
        failure = Failure(**{name: stored[name] for name in Failure.__dataclass_fields__ if name != "file"}, file=path)
        if failure.time_ns >= since_ns:
            found.append(failure)
    return sorted(found, key=lambda failure: failure.time_ns)


@final
@dataclass(frozen=True, kw_only=True)
class Cause:
    """Why a run failed."""

    text: str
    time_ns: int
    """When; 0 = a rank died without a report, before any rank that wrote one."""
    error: str = ""
    """The class that the rank raised; "" = not known."""

    def after(self, num_restarts: int) -> str:
        """The text, with the number of restarts."""
        return f"{self.text}\n(after {num_restarts} restarts)" if num_restarts else self.text


def find_cause(run_dir: RunDir, *, since_ns: int, exit_codes: Mapping[int, int]) -> Cause:
    """Which rank failed first, and how.

    Args:
        run_dir: the run's directory.
        since_ns: when the ranks were started for the last time.
        exit_codes: by rank, of the ranks that failed, the first one to be noticed leading; -n = killed by signal n.

    A rank that died without a report comes before any traceback: it could not write one, and the other ranks failed
    when their connections to it broke. SIGTERM does not count, since the agent ends the other ranks with it.
    """
    failures = read_failures(run_dir, since_ns=since_ns)
    reported = {failure.rank for failure in failures}
    silent = {rank: code for rank, code in exit_codes.items() if rank not in reported}
    for rank, code in silent.items():
        if -code != signal.SIGTERM:
            return Cause(text=_describe_exit(run_dir, rank, code), time_ns=0)
    if failures:
        return Cause(text=str(failures[0]), time_ns=failures[0].time_ns, error=failures[0].error)
    if silent:
        return Cause(text=_describe_exit(run_dir, *next(iter(silent.items()))), time_ns=time.time_ns())
    return Cause(text="the ranks failed without reporting a cause.", time_ns=time.time_ns())


def _describe_exit(run_dir: RunDir, rank: int, code: int) -> str:
    last = f"the last recorded step is {run_dir.read_status()['step']}"
    if code < 0:
        name = signal.Signals(-code).name if -code in signal.valid_signals() else f"signal {-code}"
        first = f"rank {rank} was killed by {name}; {last}. {HINTS.get(-code, '')}".rstrip()
    else:
        first = f"rank {rank} exited with code {code} without a traceback in {run_dir.failures}; {last}."
    log = run_dir.rank_log(rank)
    lines = log.read_text(errors="replace").splitlines()[-LOG_LINES:] if log.exists() else []
    return "\n".join([first, *([f"The end of {log}:"] if lines else []), *(f"    {line}" for line in lines)])
