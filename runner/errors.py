"""Every error that the runner raises on purpose, and the exit code that each one means.

RunnerError (1)
├── SpecError (2)          the declaration is wrong: carries every fault at once
├── HookError (1)          a user's function did what its seam does not allow
├── DataError (1)          a dataset that cannot be trained on
├── CheckpointError (1)    a checkpoint that is missing, corrupted or of another model
├── RankError (1)          ranks that disagree
├── RunFailed (1)          a run that started and failed; the cause is in its directory
└── Interrupted (130)      a run that a person or a scheduler ended
"""

from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One thing wrong with a declaration."""

    key: str  # dotted path, as one would override it: batch.items
    message: str  # value, rule and way out
    origin: str = ""  # where the value came from: a file, or the command line

    def __str__(self) -> str:
        origin = f"\n    from {self.origin}" if self.origin else ""
        return f"{self.key}: {self.message}{origin}"


class RunnerError(Exception):
    """The root: whatever the runner raises on purpose."""

    exit_code: ClassVar[int] = 1


class SpecError(RunnerError):
    """The declaration is wrong. Holds all of its faults, not only the first."""

    exit_code: ClassVar[int] = 2

    def __init__(self, *faults: Fault) -> None:
        self.faults = faults
        super().__init__("\n".join(str(fault) for fault in faults))

    def __reduce__(self) -> tuple[type["SpecError"], tuple[Fault, ...]]:
        return type(self), self.faults  # faults, not the message, go to another process


class HookError(RunnerError):
    """A user's function returned something, or took something, that its seam does not allow."""


class DataError(RunnerError):
    """A dataset that cannot be trained on or evaluated."""


class CheckpointError(RunnerError):
    """A checkpoint that is missing, corrupted, or of another model."""


class RankError(RunnerError):
    """The ranks disagree about something that must be the same on all of them."""


class RunFailed(RunnerError):
    """A run that started and failed. The message is the first failing rank's own."""


class Interrupted(RunnerError):
    """A run that was asked to stop before its last step."""

    exit_code: ClassVar[int] = 130
