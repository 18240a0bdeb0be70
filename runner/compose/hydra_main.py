"""Hydra's own program around a recipe: for flags that print something, for completion, and for sweeps."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import hydra

from runner.compose.recipe import Recipe
from runner.compose.search_path import searching

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
        arguments: its command line: flags, then overrides.
        directories: searched after the recipe's own.
        task: called with the configuration of each job; must be picklable for launchers that start processes.

    Returns:
        Its exit code.
    """
    program = hydra.main(config_path=str(recipe.directory), config_name=recipe.name, version_base=None)(task)
    before = sys.argv
    sys.argv = [before[0], *arguments]  # @hydra.main reads nothing else
    try:
        with searching(directories):
            program()
    except SystemExit as left:
        return left.code if isinstance(left.code, int) else int(left.code is not None)
    finally:
        sys.argv = before
    return 0


def quoted(text: str) -> str:
    """Any text as one value of Hydra's override grammar."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"
