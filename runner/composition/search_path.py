"""Context managers that add a recipe and its directories to Hydra's config search path."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from hydra import initialize_config_dir
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from hydra.plugins.search_path_plugin import SearchPathPlugin

from runner.composition.config_source import reading_with_libyaml
from runner.composition.recipe import Recipe

__all__ = ["extended_search_path", "initialized_hydra"]


@contextmanager
def initialized_hydra(recipe: Recipe, directories: Sequence[Path]) -> Iterator[None]:
    """Initialize Hydra's compose API for a recipe. Can be nested, also inside @hydra.main."""
    outer = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        with (
            extended_search_path(directories),
            initialize_config_dir(str(recipe.directory), job_name=recipe.name, version_base=None),
        ):
            yield
    finally:
        GlobalHydra.instance().hydra = outer


@contextmanager
def extended_search_path(directories: Sequence[Path]) -> Iterator[None]:
    """Make Hydra search these directories, in order, after the primary config's own, and read files with libyaml."""

    class RunnerSearchPath(SearchPathPlugin):
        """Appends the directories of one recipe."""

        def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
            for directory in directories:
                search_path.append(provider="runner", path=f"file://{directory}")

    plugins = Plugins.instance()
    plugins.register(RunnerSearchPath)
    try:
        with reading_with_libyaml():
            yield
    finally:
        # Hydra has no way to unregister a plugin. If this one stayed registered, recipes composed later in the same
        # process would search its directories too.
        plugins.plugin_type_to_subclass_list[SearchPathPlugin].remove(RunnerSearchPath)
