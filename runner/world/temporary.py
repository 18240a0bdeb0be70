"""Temporary directories of a rank: its process, and its data workers, do not end as those who made them count on."""

import multiprocessing
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from tempfile import TemporaryDirectory

__all__ = ["removing_temporary_directories"]

SOCKETS = "tempdir"
"""Where multiprocessing looks for the directory of its sockets, in the configuration that processes inherit."""


@contextmanager
def removing_temporary_directories() -> Iterator[None]:
    """Remove the temporary directories that libraries made in the block, such as wandb when it is imported.

    Those are removed at the end of an interpreter, which a process that ends by os._exit does not reach. What a forked
    process has inherited stays. Data workers, which are killed, keep the sockets through which they send tensors in a
    directory of this process, instead of one each.
    """
    inherited = set(_made())
    config = multiprocessing.current_process()._config  # type: ignore[attr-defined]
    before = config.get(SOCKETS)
    with TemporaryDirectory(prefix="runner-", ignore_cleanup_errors=True) as sockets:
        config[SOCKETS] = sockets
        try:
            yield
        finally:
            config[SOCKETS] = before
            for directory in set(_made()) - inherited:
                directory.cleanup()


def _made() -> Iterator[TemporaryDirectory[str]]:
    """Every temporary directory of this process that is not removed yet."""
    for finalizer in list(weakref.finalize._registry):  # type: ignore[attr-defined]
        found = finalizer.peek()
        if found is not None and isinstance(found[0], TemporaryDirectory):
            yield found[0]
