"""Read the config files of a composition before Hydra does, to say what is wrong with one by file and line.

Hydra names neither a file that is not UTF-8 nor one that includes itself, and it ends at the first.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from runner.composition.recipe import SUFFIX, Recipe
from runner.composition.yaml_file import FileFault, parse
from runner.config.run_dir import RunDir
from runner.config.store import frozen_recipe
from runner.errors import Fault, SpecError

__all__ = ["check_files"]

SELF = "_self_"


def check_files(recipe: Recipe, directories: Sequence[Path], overrides: Sequence[str]) -> None:
    """Read the recipe and every file that it includes.

    Args:
        directories: searched after the recipe's own.

    Raises:
        SpecError: a file is not valid YAML or has a duplicate key, includes itself, or the recipe is not one. Holds
            the faults of all files.
    """
    reading = _Reading(directories=(recipe.directory, *directories), choices=dict(_choices(overrides)))
    reading.visit(recipe.path, option=recipe.name, above=())
    if reading.faults:
        raise SpecError(*reading.faults)


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
    seen: set[Path] = field(default_factory=set)

    def visit(self, path: Path, *, option: str, above: tuple[Path, ...]) -> None:
        """Read a file, then those that it includes.

        Args:
            option: its path relative to the directory in which it was found, without its suffix.
            above: the files through which it is included, outermost first.
        """
        if path in above:
            chain = " → ".join(one.stem for one in (*above[above.index(path) :], path))
            message = f"the file includes itself: {chain}. Remove one of these entries from its defaults list."
            self.faults.append(Fault(key="defaults", message=message, origin=str(above[-1])))
            return
        if path in self.seen:
            return
        self.seen.add(path)
        try:
            content = parse(path)
            if not above and (trained := frozen_recipe(content)) is not None:
                raise FileFault(_frozen(path, trained))
            if not isinstance(content.get("hydra", {}), dict):
                raise FileFault("hydra must be a mapping of Hydra's own settings. Correct or delete it.")
            entries = _entries(content.get("defaults"))
        except FileFault as wrong:
            key = option if above else "recipe"
            self.faults.append(Fault(key=key, message=str(wrong), origin=str(path)))
            return
        group = option.rpartition("/")[0]
        for name, options in entries:
            if name.startswith("override "):
                self.choices.setdefault(_absolute(name.removeprefix("override "), group), options)
        for name, options in entries:
            if not name.startswith("override "):
                self._include(name.removeprefix("optional "), options, group=group, above=(*above, path))

    def _include(self, name: str, options: list[str], *, group: str, above: tuple[Path, ...]) -> None:
        """Visit the files of an entry: of a group if the name is not empty, otherwise a file of its own."""
        chosen = self.choices.get(_absolute(name, group), options) if name else options
        for option in chosen:
            entry = option.removeprefix("optional ")
            full = f"{_absolute(name, group)}/{entry}" if name else _absolute(entry, group)
            found = next((path for path in self._candidates(full) if path.is_file()), None)
            if found is not None:
                self.visit(found.resolve(), option=full, above=above)

    def _candidates(self, option: str) -> Iterator[Path]:
        name = option.removesuffix(SUFFIX) + SUFFIX
        return (directory / name for directory in self.directories if "\0" not in name)


def _absolute(name: str, group: str) -> str:
    """The path of a name in a defaults list, relative to the search path; without the package after @."""
    bare = name.strip().partition("@")[0]
    return bare.lstrip("/") if bare.startswith("/") or not group else f"{group}/{bare}"


def _entries(defaults: object) -> list[tuple[str, list[str]]]:
    """The entries of a defaults list: what stands before the colon (empty if there is none), and the options.

    Raises:
        FileFault: it is not a list of texts and of mappings with one key.
    """
    if defaults is None:
        return []
    if not isinstance(defaults, list):
        raise FileFault(f"defaults is {defaults!r}, but must be a list: defaults: [base, _self_]")
    return [_entry(entry) for entry in defaults if entry != SELF]


def _entry(entry: object) -> tuple[str, list[str]]:
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
        "schedule: cosine, override schedule: cosine"
    )


def _bare(name: str) -> str:
    """A name in a defaults list, without the words before it and the package after it."""
    return _absolute(name.removeprefix("override ").removeprefix("optional "), "").strip("/")


def _frozen(path: Path, recipe: str) -> str:
    run_dir = RunDir(path.parent)
    resume = f" To continue it: runner resume {run_dir.path}." if path in run_dir.specs() else ""
    return (
        f"this is the frozen declaration of a run, not a recipe.{resume} To train its recipe anew: "
        f"runner train {recipe or 'RECIPE'}"
    )
