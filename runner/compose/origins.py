"""Which file, or the command line, a value came from. Files are read only when somebody asks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from runner.compose.recipe import Recipe
from runner.config.store import load_yaml

__all__ = ["COMMAND_LINE", "Holder", "Origins", "key_of"]

COMMAND_LINE = "the command line"


class Holder(NamedTuple):
    """A file of the composition."""

    path: Path
    option: str
    """Its name on the search path: optimizer/adamw."""
    package: str
    """Dotted key under which its content stands; empty = at the top."""
    content: Mapping[str, Any]

    def get(self, key: str) -> Any:
        """What it says about a dotted key.

        Raises:
            KeyError: nothing.
        """
        inside = key
        if self.package:
            if key == self.package:
                return self.content
            if not key.startswith(f"{self.package}."):
                raise KeyError(key)
            inside = key[len(self.package) + 1 :]
        return dig(self.content, inside)

    def said(self, key: str) -> Mapping[str, Any]:
        """The mapping that it holds at a key; an empty one if it holds none."""
        try:
            node = self.get(key)
        except KeyError:
            return {}
        return node if isinstance(node, Mapping) else {}


def dig(node: Any, key: str) -> Any:
    """The value at a dotted key.

    Raises:
        KeyError: there is none.
    """
    for name in key.split("."):
        if not isinstance(node, Mapping) or name not in node:
            raise KeyError(key)
        node = node[name]
    return node


def key_of(override: str) -> str:
    """The dotted key that an override names, without its marks."""
    return override.partition("=")[0].lstrip("+~").partition("@")[0]


@dataclass(frozen=True)
class Origins:
    """Where the values of one composition come from."""

    recipe: Recipe
    directories: tuple[Path, ...]
    """Searched after the recipe's own."""
    overrides: tuple[str, ...]
    """Of the command line, without those of Hydra itself."""

    def given(self, key: str) -> bool:
        """Whether the command line says something about exactly this key or what is inside it."""
        return any(named == key or named.startswith(f"{key}.") for named in map(key_of, self.overrides))

    def origin(self, key: str) -> str:
        """The command line, or the file that holds the key, or the nearest key above it that is held."""
        while key:
            if any(named == key for named in map(key_of, self.overrides)):
                return COMMAND_LINE
            for holder in reversed(self.holders):
                try:
                    holder.get(key)
                except KeyError:
                    continue
                return str(holder.path)
            key = key.rpartition(".")[0]
        return ""

    @cached_property
    def holders(self) -> Sequence[Holder]:
        """Every file of the composition that stands on a searched directory, in the order in which they are merged."""
        from runner.compose.defaults import merged_options  # brings Hydra along: only a fault asks where it came from

        merged = merged_options(self.recipe, self.directories, self.overrides)
        paths = [(self.find(one.option), one) for one in merged]
        return [self._holder(path, one.option, one.package) for path, one in paths if path is not None]

    def find(self, option: str) -> Path | None:
        """The file of an option on the searched directories."""
        candidates = (directory / f"{option}.yaml" for directory in (self.recipe.directory, *self.directories))
        return next((path for path in candidates if path.is_file()), None)

    @staticmethod
    def _holder(path: Path, option: str, package: str) -> Holder:
        content = load_yaml(path.read_text())
        body = {key: value for key, value in content.items() if key != "defaults"} if isinstance(content, dict) else {}
        return Holder(path, option, package.removeprefix("_global_").lstrip("."), body)
