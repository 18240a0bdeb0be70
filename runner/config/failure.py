"""The report of a rank that failed: a file in the run's directory, written by the rank or by its launcher for it."""

import functools
import json
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from runner.config.damage import read_json
from runner.config.run_dir import RunDir
from runner.errors import CAUSES, HangError

__all__ = ["Failure", "decode_failure", "describe", "encode_failure", "read_failure", "write_failure"]

EXPLAINED = {kind.__name__ for kind in CAUSES if kind is not HangError}
"""Errors whose message says all that helps. Of a hang, the stack is what helps."""
NUMBERS = ("rank", "time_ns", "monotonic_ns", "start", "step")
TEXTS = ("error", "message", "traceback")
TYPES = dict.fromkeys(NUMBERS, int) | dict.fromkeys(TEXTS, str)
"""What the file holds: the fields of a Failure but its path."""
SHORT = 2000
"""Characters of a message, and of a traceback, in a report that would be too long with more."""


@final
@dataclass(frozen=True, kw_only=True)
class Failure:
    """How one rank failed."""

    rank: int
    time_ns: int
    """By the clock on the wall, for people."""
    monotonic_ns: int
    """By the machine's monotonic clock, which nobody sets: what came first."""
    start: int
    """Which start of the ranks it belongs to: see Activity.start."""
    step: int
    error: str
    """The name of its class."""
    message: str
    traceback: str
    file: Path | None = None
    """The report; None = it was not written."""

    def __str__(self) -> str:
        """What happened. The traceback of an error that explains itself stays in the report."""
        summary = f"{self.error}: {self.message}" if self.message else self.error
        if self.error not in EXPLAINED:
            details = self.traceback.rstrip()
        else:
            details = f"traceback: {self.file}" if self.file else "No report of it could be written."
        return f"rank {self.rank} failed at step {self.step}: {summary}\n{details}"


def describe(error: BaseException, *, rank: int, start: int, step: int, scrub: Callable[[str], str] = str) -> Failure:
    """The report of an error that was raised just now.

    Args:
        error: what was raised.
        rank: of the process that raised it.
        start: which start of the ranks it belongs to.
        step: the rank's last step.
        scrub: takes the run's secrets out of a text.
    """
    return Failure(
        rank=rank,
        time_ns=time.time_ns(),
        monotonic_ns=time.monotonic_ns(),
        start=start,
        step=step,
        error=type(error).__name__,
        message=scrub(str(error)),
        traceback=scrub("".join(traceback.format_exception(error))),
    )


def write_failure(run_dir: RunDir, failure: Failure) -> None:
    """Put a report into the run's directory, even on a full disk.

    Raises:
        OSError: the file system does not let it be written; it names the file.
    """
    path = run_dir.failures / f"{failure.time_ns}_rank_{failure.rank}.json"
    run_dir.write_last(path, json.dumps({name: vars(failure)[name] for name in TYPES}, indent=1) + "\n")


def encode_failure(failure: Failure, *, max_bytes: int) -> bytes:
    """A report that no file takes, in at most so many bytes: the begin of its message and the end of its traceback."""
    fields = {name: vars(failure)[name] for name in TYPES}
    whole = json.dumps(fields).encode()
    if len(whole) <= max_bytes:
        return whole
    short = {"message": failure.message[:SHORT], "traceback": failure.traceback[-SHORT:]}
    return json.dumps(fields | short).encode()


def decode_failure(encoded: bytes) -> Failure:
    """A report, as `encode_failure` gave it."""
    return Failure(**json.loads(encoded))


def read_failure(path: Path) -> Failure:
    """A report, as it was written.

    Raises:
        Damaged: it is something else.
    """
    return read_json(path, functools.partial(_failure, path))


def _failure(path: Path, stored: Any) -> Failure:
    if not isinstance(stored, dict) or not all(isinstance(stored[name], kind) for name, kind in TYPES.items()):
        raise ValueError("it is not the report of a rank")
    return Failure(**{name: stored[name] for name in TYPES}, file=path)
