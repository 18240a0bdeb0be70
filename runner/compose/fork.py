"""Compose in a short-lived copy of this process, while this one imports torch.

Hydra's 20 MB then never are the run's, and its 0.2 s pass on another core.
"""

import signal
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path

from runner.compose.composed import Composed
from runner.compose.recipe import Recipe
from runner.launch.fork import can_fork

__all__ = ["compose_in_fork"]


def compose_in_fork(recipe: Recipe, overrides: Sequence[str], *, config_dirs: Sequence[Path] = ()) -> Composed:
    """As `compose`, in a fork where one is safe, otherwise in this process.

    Raises:
        SpecError: the recipe itself cannot be composed.
    """
    if not can_fork():
        return _compose(recipe, overrides, config_dirs)
    with ProcessPoolExecutor(1, mp_context=get_context("fork"), initializer=_leave_interrupts_to_the_parent) as pool:
        composing = pool.submit(_compose, recipe, overrides, config_dirs)
        import_module("runner.worker")  # what every run needs next
        return composing.result()


def _compose(recipe: Recipe, overrides: Sequence[str], config_dirs: Sequence[Path]) -> Composed:
    from runner.compose.compose import compose  # brings Hydra along

    return compose(recipe, overrides, config_dirs=config_dirs)


def _leave_interrupts_to_the_parent() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
