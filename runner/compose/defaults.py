"""Which files Hydra would merge, without merging them."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from hydra.types import RunMode

from runner.compose.recipe import Recipe
from runner.compose.search_path import composing

__all__ = ["Merged", "merged_options"]


class Merged(NamedTuple):
    """One option of a composition."""

    option: str
    """Its name on the search path: optimizer/adamw."""
    package: str
    """Dotted key under which its content stands; empty = at the top."""


def merged_options(recipe: Recipe, directories: Sequence[Path], overrides: Sequence[str]) -> list[Merged]:
    """In the order in which they are merged; the recipe alone if its defaults cannot be followed."""
    try:
        with composing(recipe, directories):
            loader = GlobalHydra.instance().config_loader()
            defaults = loader.compute_defaults_list(recipe.name, list(overrides), RunMode.RUN).defaults
    except HydraException:
        return [Merged(recipe.name, "")]
    return [Merged(str(default.config_path), default.package or "") for default in defaults if default.config_path]
