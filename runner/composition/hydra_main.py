"""Run a recipe through @hydra.main, for flags that print something, for shell completion and for sweeps."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import hydra

from runner.composition.recipe import Recipe
from runner.composition.search_path import extended_search_path

__all__ = ["hydra_main", "quoted"]


def hydra_main(
    recipe: Recipe,
    arguments: Sequence[str],
    *,
    directories: Sequence[Path],
    task: Callable[[Any], Any] = print,
) -> int:
    """Run @hydra.main with this recipe as its primary config.

    Args:
        arguments: the command line to pass on: flags, then overrides.
        directories: searched after the recipe's own directory.
        task: called with the configuration of each job; must be picklable for launchers that start processes.

    Returns:
        The exit code.
    """
    program = hydra.main(config_path=str(recipe.directory), config_name=recipe.name, version_base=None)(task)
    before = sys.argv
    sys.argv = [before[0], *arguments]  # the only place that @hydra.main reads its arguments from
    try:
        with extended_search_path(directories):
            program()
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    finally:
        sys.argv = before
    return 0


def quoted(text: str) -> str:
    """Quote any text as a single value of Hydra's override grammar."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"
