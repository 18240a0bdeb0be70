"""Where a value came from: which config file, or the command line. Files are read only when an origin is requested."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from runner.composition.recipe import Recipe
from runner.config.store import load_yaml

__all__ = ["COMMAND_LINE", "ConfigFile", "Origins", "key_of", "select"]

COMMAND_LINE = "the command line"


class ConfigFile(NamedTuple):
    """A config file that takes part in the composition."""

    path: Path
    option: str
    """Path relative to the search path, without its suffix: optimizer/adamw."""
    package: str
    """Dotted key that the content is placed under; empty = the root."""
    content: Mapping[str, Any]

    def get(self, key: str) -> Any:
        """Return the value that this file sets for a dotted key.

        Raises:
            KeyError: the file does not set it.
        """
        relative = key
        if self.package:
            if key == self.package:
                return self.content
            if not key.startswith(f"{self.package}."):
                raise KeyError(key)
            relative = key[len(self.package) + 1 :]
        return select(self.content, relative)

    def section(self, key: str) -> Mapping[str, Any]:
        """Return the mapping that this file sets for a dotted key; empty if there is none."""
        try:
            node = self.get(key)
        except KeyError:
            return {}
        return node if isinstance(node, Mapping) else {}


def select(node: Any, key: str) -> Any:
    """Return the value at a dotted key of nested mappings.

    Raises:
        KeyError: there is no such key.
    """
    for name in key.split("."):
        if not isinstance(node, Mapping) or name not in node:
            raise KeyError(key)
        node = node[name]
    return node


def key_of(override: str) -> str:
    """Return the dotted key of an override, without the prefixes + and ~ and the package after @."""
    return override.partition("=")[0].lstrip("+~").partition("@")[0]


@dataclass(frozen=True)
class Origins:
    """The origins of the values of one composition."""

    recipe: Recipe
    directories: tuple[Path, ...]
    """Searched after the recipe's own directory."""
    overrides: tuple[str, ...]
    """From the command line, excluding overrides of Hydra's own node."""

    def origin(self, key: str) -> str:
        """Return what sets the key or its nearest parent: the command line, a file, or "" if nothing does."""
        while key:
            if any(override_key == key for override_key in map(key_of, self.overrides)):
                return COMMAND_LINE
            for file in reversed(self.files):
                try:
                    file.get(key)
                except KeyError:
                    continue
                return str(file.path)
            key = key.rpartition(".")[0]
        return ""

    @cached_property
    def files(self) -> Sequence[ConfigFile]:
        """Every file of the composition that is found in the searched directories, in merge order."""
        from runner.composition.defaults import resolve_defaults  # imports Hydra, which only a fault's origin needs

        entries = resolve_defaults(self.recipe, self.directories, self.overrides)
        paths = [(self.find(entry.option), entry) for entry in entries]
        return [self._read(path, entry.option, entry.package) for path, entry in paths if path is not None]

    def find(self, option: str) -> Path | None:
        """Return the file of an option, from the first searched directory that has it."""
        candidates = (directory / f"{option}.yaml" for directory in (self.recipe.directory, *self.directories))
        return next((path for path in candidates if path.is_file()), None)

    @staticmethod
    def _read(path: Path, option: str, package: str) -> ConfigFile:
        content = load_yaml(path.read_text())
        body = {key: value for key, value in content.items() if key != "defaults"} if isinstance(content, dict) else {}
        return ConfigFile(path, option, package.removeprefix("_global_").lstrip("."), body)
