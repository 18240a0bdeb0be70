"""One rank acts, all ranks hear how it went; and what may go wrong on a disk, said so that a person can act on it."""

import errno
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from runner.errors import CheckpointError
from runner.protocols import World

T = TypeVar("T")

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)


def on_rank_0(world: World, action: Callable[[], T], *, path: Path) -> T:
    """Act on rank 0; every rank gets the result, or the error. Collective.

    Raises:
        CheckpointError: the action did, or the file system refused (`path` says where, if the refusal does not).
    """
    outcome: tuple[T, None] | tuple[None, CheckpointError] | None = None
    if world.is_main:
        try:
            outcome = (action(), None)
        except CheckpointError as error:
            outcome = (None, error)
        except OSError as error:
            outcome = (None, refusal(error, path))
            outcome[1].__cause__ = error
    result, failure = world.broadcast_object(outcome)
    if failure is not None:
        raise failure
    return result  # type: ignore[no-any-return]


def refusal(error: OSError, path: Path) -> CheckpointError:
    """What the file system refused, and what to do about it."""
    where = error.filename or path
    if error.errno in FULL:
        way_out = "Free space there, or keep fewer: checkpoint.keep_last, checkpoint.keep_best."
    elif error.errno in FORBIDDEN:
        way_out = "Give this user the right to write there, or choose another directory: run.dir."
    else:
        way_out = "See to that file system, then continue the run with runner resume."
    return CheckpointError(f"cannot write the checkpoint: {where}: {error.strerror}. {way_out}")
