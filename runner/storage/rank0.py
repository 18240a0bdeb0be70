"""File operations that rank 0 performs for all ranks, and the errors of a file system as CheckpointErrors."""

import errno
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from runner import durable
from runner.errors import CheckpointError
from runner.protocols import World

T = TypeVar("T")

FULL = (*durable.FULL, errno.EFBIG)
FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)


def on_rank_0(world: World, action: Callable[[], T], *, path: Path) -> T:
    """Run an action on rank 0; every rank returns its result or raises its error. Collective.

    Raises:
        CheckpointError: from the action, or made of its OSError; `path` is named where that names no file.
    """
    outcome: tuple[T, None] | tuple[None, CheckpointError] | None = None
    if world.is_main:
        try:
            outcome = (action(), None)
        except CheckpointError as error:
            outcome = (None, error)
        except OSError as error:
            outcome = (None, write_error(error, path))
            outcome[1].__cause__ = error
    result, failure = world.broadcast_object(outcome)
    if failure is not None:
        raise failure
    return result  # type: ignore[no-any-return]


def write_error(error: OSError, path: Path) -> CheckpointError:
    """What the file system reported, and what to do about it."""
    where = error.filename or path
    if error.errno in FULL:
        way_out = "Free space there, or keep fewer checkpoints: checkpoint.keep_last, checkpoint.keep_best."
    elif error.errno in FORBIDDEN:
        way_out = "Give this user permission to write there, or choose another directory: run.dir."
    else:
        way_out = "Repair that file system, then continue the run with runner resume."
    return CheckpointError(f"cannot write the checkpoint: {where}: {error.strerror}. {way_out}")
