"""Resolve Hydra's defaults list without merging the files."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from hydra.types import RunMode

from runner.composition.recipe import Recipe
from runner.composition.search_path import initialized_hydra

__all__ = ["DefaultsEntry", "resolve_defaults"]


class DefaultsEntry(NamedTuple):
    """One entry of the resolved defaults list."""

    option: str
    """Path of the config file relative to the search path, without its suffix: optimizer/adamw."""
    package: str
    """Dotted key that the file's content is placed under; empty = the root."""


def resolve_defaults(recipe: Recipe, directories: Sequence[Path], overrides: Sequence[str]) -> list[DefaultsEntry]:
    """Return the entries in merge order, or only the recipe itself if its defaults cannot be resolved."""
    try:
        with initialized_hydra(recipe, directories):
            loader = GlobalHydra.instance().config_loader()
            defaults = loader.compute_defaults_list(recipe.name, list(overrides), RunMode.RUN).defaults
    except HydraException:
        return [DefaultsEntry(recipe.name, "")]
    return [
        DefaultsEntry(str(default.config_path), default.package or "") for default in defaults if default.config_path
    ]
