"""Compose in a short-lived forked process while a thread of this one imports torch.

This keeps Hydra's 20 MB out of the training process and runs its 0.4 s of work on another core. The main thread waits
for the composed declaration only: what is wrong with it, or what it is about to do, is told before torch is there.
"""

import contextlib
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path
from threading import Thread
from typing import NamedTuple

from runner.composition.composed import Composed
from runner.composition.outline import Outline
from runner.composition.recipe import Recipe
from runner.errors import RunnerError
from runner.world.fork import can_fork

__all__ = ["Approve", "Draft", "composing"]

Approve = Callable[[Composed], None]
"""Raises unless what was composed may be imported."""

WORKER = "runner.worker"
"""Imports torch; every run needs it."""


class Draft(NamedTuple):
    """A composed declaration whose names, types and ranges are right, and its outline."""

    composed: Composed
    outline: Outline


@contextmanager
def composing(
    recipe: Recipe, overrides: Sequence[str], *, config_dirs: Sequence[Path] = (), approve: Approve
) -> Iterator[Draft]:
    """Compose in a forked process where forking is safe, otherwise in this one. The worker is imported at its end.

    The block must not import torch or hooks: a thread may be importing them.

    Args:
        approve: called before any part is imported; a function that can be pickled.

    Raises:
        SpecError: the declaration cannot be composed, or names, types or ranges in it are wrong.
        RunnerError: the forked process ended before it had composed anything.
    """
    if not can_fork():
        yield _draft(recipe, overrides, config_dirs, approve)
        import_module(WORKER)
        return
    with ProcessPoolExecutor(1, mp_context=get_context("fork"), initializer=_ignore_interrupts) as pool:
        future = pool.submit(_draft, recipe, overrides, config_dirs, approve)
        importing = Thread(target=_import_worker, name="runner-import", daemon=True)
        importing.start()
        draft = _result(future)
    yield draft
    importing.join()  # a process with a second thread cannot fork ranks


def _result(future: "Future[Draft]") -> Draft:
    try:
        return future.result()
    except BrokenProcessPool:
        what = "the process that composes the declaration ended without a word, and nothing was started"
        rule = "A module that the declaration names may call os._exit, or the kernel ran out of memory (see dmesg)."
        raise RunnerError(f"{what}. {rule}") from None


def _draft(recipe: Recipe, overrides: Sequence[str], config_dirs: Sequence[Path], approve: Approve) -> Draft:
    from runner.composition.compose import compose  # imports Hydra

    composed = compose(recipe, overrides, config_dirs=config_dirs)
    approve(composed)
    return Draft(composed, composed.outline())


def _import_worker() -> None:
    with contextlib.suppress(ImportError):  # raised again where the run imports it
        import_module(WORKER)


def _ignore_interrupts() -> None:
    """Leave Ctrl-C to the parent process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
