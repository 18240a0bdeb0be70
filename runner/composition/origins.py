"""Where a value came from: which line of which config file, or the command line, and what that replaced.

Files are read only when an origin is requested.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from runner.composition.config_files import choices_in_files
from runner.composition.recipe import Recipe
from runner.composition.yaml_file import FileFault, Page, parse
from runner.config.named_path import is_file, place
from runner.errors import SpecError

__all__ = ["COMMAND_LINE", "ConfigFile", "Origins", "Setting", "key_of", "select"]

COMMAND_LINE = "the command line"


class Setting(NamedTuple):
    """One of the places that set a value, in a config file or on the command line."""

    value: Any
    """As it is written there: interpolations are not resolved."""
    path: Path | None
    """The file; None = the command line."""
    line: int | None = None
    comment: str = ""
    """The comment beside it."""
    override: str = ""
    """On the command line, the whole override."""

    @property
    def origin(self) -> str:
        """What a fault about the value names: recipes/digits.yaml:22."""
        return COMMAND_LINE if self.path is None else place(self.path, self.line)

    @property
    def source(self) -> str:
        """What a record of the value names, which a change of other lines leaves as it is."""
        return COMMAND_LINE if self.path is None else str(self.path)


class ConfigFile(NamedTuple):
    """A config file that takes part in the composition."""

    path: Path
    option: str
    """Path relative to the search path, without its suffix: optimizer/adamw."""
    package: str
    """Dotted key that the content is placed under; empty = the root."""
    page: Page

    @property
    def content(self) -> Mapping[str, Any]:
        """What the file sets, which is all but its defaults list."""
        return {key: value for key, value in self.page.content.items() if key != "defaults"}

    def get(self, key: str) -> Any:
        """Return the value that this file sets for a dotted key.

        Raises:
            KeyError: the file does not set it.
        """
        relative = self._relative(key)
        return select(self.content, relative) if relative else self.content

    def setting(self, key: str) -> Setting:
        """Return the value that this file sets for a dotted key, with its line and comment.

        Raises:
            KeyError: the file does not set it.
        """
        keys = self._relative(key).split(".")
        return Setting(self.get(key), self.path, self.page.line(*keys), self.page.comment(*keys))

    def _relative(self, key: str) -> str:
        """The key inside the file; empty for the file's package itself."""
        if not self.package or key == self.package:
            return "" if self.package else key
        if not key.startswith(f"{self.package}."):
            raise KeyError(key)
        return key[len(self.package) + 1 :]

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


def _page(path: Path, option: str) -> Page:
    try:
        return parse(path)
    except FileFault as wrong:
        raise SpecError(wrong.fault(option, path)) from None


def _value_of(override: str) -> Any:
    """The value that an override gives; None for one that deletes its key."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    return OverridesParser.create().parse_override(override).value()


@dataclass(frozen=True)
class Origins:
    """The origins of the values of one composition."""

    recipe: Recipe
    directories: tuple[Path, ...]
    """Searched after the recipe's own directory."""
    overrides: tuple[str, ...]
    """From the command line, excluding overrides of Hydra's own node."""

    def origin(self, key: str) -> str:
        """Return what sets the key or its nearest parent, or chooses the option of a group.

        The command line, a line of a file, or "" if nothing does.
        """
        settings = self.choices(key) or self.settings(key)
        return settings[-1].origin if settings else ""

    def source(self, key: str) -> str:
        """Return the file that sets the key or its nearest parent, or the command line; "" if nothing does."""
        settings = self.settings(key)
        return settings[-1].source if settings else ""

    def settings(self, key: str) -> list[Setting]:
        """Return everything that sets the key, in the order in which it applies: the last one wins.

        A value that comes from an interpolation of its whole section has the settings of that section.
        """
        while key:
            settings = [*self._settings_in_files(key), *self._overrides_of(key)]
            if settings:
                return settings
            key = key.rpartition(".")[0]
        return []

    def choices(self, group: str) -> list[Setting]:
        """Return everything that chooses options of a group, in the order in which it applies: the last one wins."""
        return [
            *(
                Setting(choice.options, choice.path, choice.line)
                for choice in choices_in_files(self.recipe, self.directories, self.overrides)
                if choice.group == group
            ),
            *self._overrides_of(group),
        ]

    def _settings_in_files(self, key: str) -> Iterator[Setting]:
        for file in self.files:
            with suppress(KeyError):
                yield file.setting(key)

    def _overrides_of(self, key: str) -> Iterator[Setting]:
        """The overrides of a key, and those of a section above it whose value has the key inside."""
        for text in self.overrides:
            above = key_of(text)
            if above != key and not key.startswith(f"{above}."):
                continue
            value = _value_of(text)
            with suppress(KeyError):
                inside = value if above == key else select(value, key[len(above) + 1 :])
                yield Setting(inside, None, override=text)

    @cached_property
    def files(self) -> Sequence[ConfigFile]:
        """Every file of the composition that is found in the searched directories, in merge order.

        Raises:
            SpecError: Hydra reads a file that this cannot, where an interpolation in a defaults list names it.
        """
        from runner.composition.defaults import resolve_defaults  # imports Hydra, which only a fault's origin needs

        entries = resolve_defaults(self.recipe, self.directories, self.overrides)
        paths = [(self.find(entry.option), entry) for entry in entries]
        return [
            ConfigFile(
                path, entry.option, entry.package.removeprefix("_global_").lstrip("."), _page(path, entry.option)
            )
            for path, entry in paths
            if path is not None
        ]

    def find(self, option: str) -> Path | None:
        """Return the file of an option, from the first searched directory that has it."""
        candidates = (directory / f"{option}.yaml" for directory in (self.recipe.directory, *self.directories))
        return next((path for path in candidates if is_file(path)), None)
