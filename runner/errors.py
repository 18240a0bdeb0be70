"""Every error that the runner raises on purpose, one class for each cause, and the exit code that each one means.

RunnerError (1)
├── SpecError (2)          the declaration is wrong: carries every fault at once
├── HookError (3)          a user's function cannot be called, or returned what its seam does not allow
├── ModelError (4)         the model cannot be trained as the declaration says
├── DataError (5)          the dataset cannot be trained on or evaluated
├── NonFiniteError (6)     a loss or a gradient is nan or inf
├── OutOfMemoryError (7)   a device or the host has no memory left
├── CheckpointError (8)    a checkpoint is missing, corrupted, of another model, or cannot be written
├── LaunchError (9)        the machines of a run did not come together
├── RankError (10)         ranks disagree, or a process cannot be the rank that it should be
├── HangError (11)         a rank makes no progress while the others wait for it
├── DiskError (12)         a file of the run's directory cannot be written or read: the disk is full, or fails
├── NotReproducedError (13)   a run that was trained again differs from the first
├── RunFailed (of cause)   a run that started and failed; 1 if the runner does not know the cause
└── Interrupted (130)      a run that a person or a scheduler stopped
"""

from dataclasses import dataclass
from functools import partial


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

    exit_code: int = 1
    """What the command line ends with."""


class SpecError(RunnerError):
    """The declaration is wrong. Holds all of its faults, not only the first.

    Args:
        note: a last line about the faults as a whole, such as what has not been checked yet.
    """

    exit_code = 2

    def __init__(self, *faults: Fault, note: str = "") -> None:
        self.faults = faults
        self.note = note
        super().__init__("\n".join((*map(str, faults), *([note] if note else []))))

    def __reduce__(self) -> tuple[partial["SpecError"], tuple[Fault, ...]]:
        return partial(type(self), note=self.note), self.faults  # faults, not the message, go to another process


class HookError(RunnerError):
    """A user's function cannot be called, or it returned or took something that its seam does not allow."""

    exit_code = 3


class ModelError(RunnerError):
    """The model cannot be trained as the declaration says: by this strategy, in this precision, deterministically."""

    exit_code = 4


class DataError(RunnerError):
    """A dataset that cannot be trained on or evaluated."""

    exit_code = 5


class NonFiniteError(RunnerError):
    """A loss or a gradient is nan or inf, and the declaration does not say to go on."""

    exit_code = 6


class OutOfMemoryError(RunnerError):
    """A device or the host has no memory left for what the run needs."""

    exit_code = 7


class CheckpointError(RunnerError):
    """A checkpoint that is missing, corrupted, of another model, or that cannot be written."""

    exit_code = 8


class LaunchError(RunnerError):
    """The machines of a run did not come together."""

    exit_code = 9


class RankError(RunnerError):
    """The ranks disagree about something that must be the same on all of them."""

    exit_code = 10


class HangError(RunnerError):
    """A rank made no progress for `hardware.timeout_s` seconds while the others waited for it."""

    exit_code = 11


class DiskError(RunnerError):
    """A file of the run's directory that cannot be written or read: a disk or quota that is full, a disk that fails."""

    exit_code = 12


class NotReproducedError(RunnerError):
    """A run that was trained again from its record, and differs from the first."""

    exit_code = 13


class Interrupted(RunnerError):
    """A run that was asked to stop before its last step."""

    exit_code = 130


CAUSES = (
    SpecError,
    HookError,
    ModelError,
    DataError,
    NonFiniteError,
    OutOfMemoryError,
    CheckpointError,
    LaunchError,
    RankError,
    HangError,
    DiskError,
)
"""What can end a rank."""


class RunFailed(RunnerError):
    """A run that started and failed. The message is that of the rank that failed first; so is the exit code.

    Args:
        message: what happened, and where to look.
        cause: the name of the class that the rank raised, as its failure file has it; "" = not known.
    """

    def __init__(self, message: str = "", *, cause: str = "") -> None:
        super().__init__(message)
        self.exit_code = next((kind.exit_code for kind in CAUSES if kind.__name__ == cause), RunnerError.exit_code)
