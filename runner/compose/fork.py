"""Compose in a short-lived forked process while this process imports torch.

This keeps Hydra's 20 MB out of the training process and runs its 0.2 s of work on another core.
"""

import signal
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path

from runner.compose.composed import Composed
from runner.compose.recipe import Recipe
from runner.world.fork import can_fork

__all__ = ["compose_in_fork"]


def compose_in_fork(recipe: Recipe, overrides: Sequence[str], *, config_dirs: Sequence[Path] = ()) -> Composed:
    """Like `compose`, but in a forked process where forking is safe, otherwise in this one.

    Raises:
        SpecError: the recipe itself cannot be composed.
    """
    if not can_fork():
        return _compose(recipe, overrides, config_dirs)
    with ProcessPoolExecutor(1, mp_context=get_context("fork"), initializer=_ignore_interrupts) as pool:
        future = pool.submit(_compose, recipe, overrides, config_dirs)
        import_module("runner.worker")  # imports torch; every run needs it next
        return future.result()


def _compose(recipe: Recipe, overrides: Sequence[str], config_dirs: Sequence[Path]) -> Composed:
    from runner.compose.compose import compose  # imports Hydra

    return compose(recipe, overrides, config_dirs=config_dirs)


def _ignore_interrupts() -> None:
    """Leave Ctrl-C to the parent process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
