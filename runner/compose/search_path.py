"""How Hydra learns of the runner's directories: a search path plugin that is registered only while it composes."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.plugins import Plugins
from hydra.plugins.search_path_plugin import SearchPathPlugin

__all__ = ["searching"]


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
