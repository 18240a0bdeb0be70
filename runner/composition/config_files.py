"""Read the config files of a composition before Hydra does, to say what is wrong with one by file and line.

Hydra names neither a file that is not UTF-8 nor one that includes itself, and it ends at the first. The same walk tells
which entry of which defaults list chooses an option.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from runner.composition.recipe import SCHEME, SUFFIX, Recipe
from runner.composition.yaml_file import FileFault, Page, parse
from runner.config.named_path import is_file, place
from runner.config.run_dir import RunDir
from runner.config.store import frozen_recipe
from runner.errors import Fault, SpecError

__all__ = ["Choice", "check_files", "choices_in_files"]

SELF = "_self_"
OVERRIDE = "override "
OPTIONAL = "optional "
ADDRESS = (
    "defaults names {0!r}, but an address has search paths and code of its own and is no base. Train it, with what "
    "differs in an option of your own, conf/experiment/NAME.yaml, which begins with # @package _global_: "
    "runner train {0} +experiment=NAME"
)
"""Of a recipe by its address, where only a name on the search path can stand."""


class Choice(NamedTuple):
    """An entry of a defaults list that names options of a group, or another file."""

    group: str
    """Path of the group, relative to the search path; empty if the entry names a file."""
    options: list[str]
    """Or the file."""
    overrides: bool
    """Whether it is `override group: option`, which replaces what another list includes."""
    path: Path
    line: int | None


def check_files(recipe: Recipe, directories: Sequence[Path], overrides: Sequence[str]) -> None:
    """Read the recipe and every file that it includes.

    Args:
        directories: searched after the recipe's own.

    Raises:
        SpecError: a file is not valid YAML or has a duplicate key, includes itself, or the recipe is not one. Holds
            the faults of all files.
    """
    reading = _read(recipe, directories, overrides)
    if reading.faults:
        raise SpecError(*reading.faults)


def choices_in_files(recipe: Recipe, directories: Sequence[Path], overrides: Sequence[str]) -> list[Choice]:
    """Every entry that names options of a group or a file, in the order in which they apply: the last wins."""
    return _read(recipe, directories, overrides).entries[::-1]


def _read(recipe: Recipe, directories: Sequence[Path], overrides: Sequence[str]) -> "_Reading":
    reading = _Reading(directories=(recipe.directory, *directories), choices=dict(_choices(overrides)))
    reading.visit(recipe.path, option=recipe.name, above=(), line=None)
    return reading


def _choices(overrides: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """The options that overrides of the form group=option or group=[option,…] choose."""
    for text in overrides:
        key, _, value = text.partition("=")
        names = [name.strip() for name in value.strip("[]").split(",")]
        yield key.lstrip("+").partition("@")[0], [name for name in names if name]


@dataclass(kw_only=True)
class _Reading:
    """The files read so far and their faults."""

    directories: Sequence[Path]
    choices: dict[str, list[str]]
    """The options of each group that is overridden, by the command line or by a file above the one that includes it."""
    faults: list[Fault] = field(default_factory=list)
    entries: list[Choice] = field(default_factory=list)
    """The last to apply first."""
    seen: set[Path] = field(default_factory=set)

    def visit(self, path: Path, *, option: str, above: tuple[Path, ...], line: int | None) -> None:
        """Read a file, then those that it includes.

        Args:
            option: its path relative to the directory in which it was found, without its suffix.
            above: the files through which it is included, outermost first.
            line: of the last one of them, on which it is included.
        """
        if path in above:
            chain = " → ".join(one.stem for one in (*above[above.index(path) :], path))
            message = f"the file includes itself: {chain}. Remove one of these entries from its defaults list."
            self.faults.append(Fault(key="defaults", message=message, origin=place(above[-1], line)))
            return
        if path in self.seen:
            return
        self.seen.add(path)
        try:
            page = parse(path)
            content = page.content
            if not above and (trained := frozen_recipe(content)) is not None:
                raise FileFault(_frozen(path, trained))
            if not isinstance(content.get("hydra", {}), dict):
                rule = "hydra must be a mapping of Hydra's own settings. Correct or delete it."
                raise FileFault(rule, line=page.line("hydra"))
            choices = _choices_in(page, path, folder=option.rpartition("/")[0])
        except FileFault as wrong:
            key = option if above else "recipe"
            self.faults.append(wrong.fault(key, path))
            return
        for choice in choices:
            if choice.overrides:
                self.choices.setdefault(choice.group, choice.options)
                self.entries.append(choice)
        for choice in reversed(choices):  # as Hydra does: what a file overrides applies to those before it in the list
            if not choice.overrides:
                self._include(choice, above=(*above, path))

    def _include(self, choice: Choice, *, above: tuple[Path, ...]) -> None:
        """Visit the files that an entry names, or that an override names in its place."""
        self.entries.append(choice)
        options = self.choices.get(choice.group, choice.options) if choice.group else choice.options
        for option in options:
            full = f"{choice.group}/{option.removeprefix(OPTIONAL)}".lstrip("/")
            found = next((path for path in self._candidates(full) if is_file(path)), None)
            if found is not None:
                self.visit(found.resolve(), option=full, above=above, line=choice.line)

    def _candidates(self, option: str) -> Iterator[Path]:
        name = option.removesuffix(SUFFIX) + SUFFIX
        return (directory / name for directory in self.directories)


def _absolute(name: str, group: str) -> str:
    """The path of a name in a defaults list, relative to the search path; without the package after @."""
    bare = name.strip().partition("@")[0]
    return bare.lstrip("/") if bare.startswith("/") or not group else f"{group}/{bare}"


def _choices_in(page: Page, path: Path, *, folder: str) -> list[Choice]:
    """The entries of a file's defaults list, without _self_.

    Args:
        folder: of the file, relative to the search path.

    Raises:
        FileFault: it is not a list of texts and of mappings with one key.
    """
    defaults = page.content.get("defaults")
    if defaults is None:
        return []
    if not isinstance(defaults, list):
        rule = f"defaults is {defaults!r}, but must be a list: defaults: [base, _self_]"
        raise FileFault(rule, line=page.line("defaults"))
    choices = []
    for index, entry in enumerate(defaults):
        line = page.line("defaults", index)
        name, options = _entry(entry, line)
        for address in options:
            if SCHEME in address:
                raise FileFault(ADDRESS.format(address), line=line)
        if name:
            group = _absolute(name.removeprefix(OVERRIDE).removeprefix(OPTIONAL), folder)
            choices.append(Choice(group, options, name.startswith(OVERRIDE), path, line))
        elif options != [SELF]:
            files = [_absolute(file.removeprefix(OPTIONAL), folder) for file in options]
            choices.append(Choice("", files, False, path, line))
    return choices


def _entry(entry: object, line: int | None) -> tuple[str, list[str]]:
    """What stands before the colon (empty if there is none), and the options."""
    if isinstance(entry, str) and _bare(entry):
        return "", [entry]
    pairs = list(entry.items()) if isinstance(entry, dict) else []
    if len(pairs) == 1 and isinstance(pairs[0][0], str) and _bare(pairs[0][0]):
        name, value = pairs[0]
        options = value if isinstance(value, list) else [] if value is None else [value]
        if all(isinstance(option, str | bool | int) for option in options):
            return name, [str(option) for option in options]
    raise FileFault(
        f"defaults contains {entry!r}, but an entry is the name of a file, or group: option. For example: base, "
        "schedule: cosine, override schedule: cosine",
        line=line,
    )


def _bare(name: str) -> str:
    """A name in a defaults list, without the words before it and the package after it."""
    return _absolute(name.removeprefix(OVERRIDE).removeprefix(OPTIONAL), "").strip("/")


def _frozen(path: Path, recipe: str) -> str:
    run_dir = RunDir(path.parent)
    resume = f" To continue it: runner resume {run_dir.path}." if path in run_dir.specs() else ""
    again = f" To train a new run as it declares: runner train --from {run_dir.path}." if resume else ""
    return (
        f"this is the frozen declaration of a run, not a recipe.{resume}{again} To train its recipe anew: "
        f"runner train {recipe or 'RECIPE'}"
    )
