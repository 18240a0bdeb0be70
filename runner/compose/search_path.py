"""How Hydra learns of a recipe and of the runner's directories, for as long as it composes and no longer."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from hydra import initialize_config_dir
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from hydra.plugins.search_path_plugin import SearchPathPlugin

from runner.compose.recipe import Recipe

__all__ = ["composing", "searching"]


@contextmanager
def composing(recipe: Recipe, directories: Sequence[Path]) -> Iterator[None]:
    """Inside the block, Hydra's compose API knows this recipe. May stand inside another one, or inside @hydra.main."""
    outer = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        with (
            searching(directories),
            initialize_config_dir(str(recipe.directory), job_name=recipe.name, version_base=None),
        ):
            yield
    finally:
        GlobalHydra.instance().hydra = outer


@contextmanager
def searching(directories: Sequence[Path]) -> Iterator[None]:
    """Inside the block, Hydra searches these after the primary config's own directory, first to last."""

    class RunnerSearchPath(SearchPathPlugin):
        """Appends the directories of one recipe."""

        def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
            for directory in directories:
                search_path.append(provider="runner", path=f"file://{directory}")

    plugins = Plugins.instance()
    plugins.register(RunnerSearchPath)
    try:
        yield
    finally:
        # Hydra keeps plugins for the life of the process and has no way to take one back: two recipes composed in one
        # process would see each other's directories.
        plugins.plugin_type_to_subclass_list[SearchPathPlugin].remove(RunnerSearchPath)
