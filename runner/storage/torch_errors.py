"""Errors of torch.distributed.checkpoint as the runner's own. Importing it takes half a second."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torch.distributed.checkpoint.api import CheckpointException

from runner.errors import CheckpointError
from runner.storage.rank0 import write_error


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """Raise the first rank's error instead of a CheckpointException, a BaseException that holds the errors of all."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")
            yield
    except CheckpointException as exception:
        rank, (error, _) = min(exception.failures.items())
        if isinstance(error, OSError):
            raise write_error(error, path) from exception
        if isinstance(error, CheckpointError):
            raise CheckpointError(*error.args) from exception
        error.add_note(f"on rank {rank}, in checkpoint {path}")
        raise error from exception
