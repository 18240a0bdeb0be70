"""Arguments that verbs share: a recipe or a run's directory, overrides, and Hydra's flags, in any order."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from runner.composition.find_recipe import find
from runner.composition.recipe import Recipe, recipe_files
from runner.config.named_path import is_directory
from runner.config.run_dir import RunDir
from runner.errors import Fault, SpecError

__all__ = [
    "TrainArguments",
    "add_recipe",
    "add_run",
    "add_run_or_recipe",
    "bare_words",
    "existing_directory",
    "existing_run",
    "existing_run_or_recipe",
    "key_words",
    "override_words",
    "recipe_words",
    "refuse_directories",
    "run_words",
    "split_words",
    "train_arguments",
    "words_of",
]

DIRECTORIES = {"hydra.run.dir": "run.dir", "hydra.sweep.dir": "sweep.dir"}
"""Hydra's keys for output directories, and the runner's keys to use instead."""


@dataclass(frozen=True, kw_only=True)
class TrainArguments:
    """A command line of `train`."""

    recipe: str
    overrides: list[str]
    multirun: bool
    config_dirs: list[Path]
    hydra_flags: list[str]
    """Flags that make Hydra print something instead of running."""
    trust: bool
    """Accept a recipe that is not the person's own."""


def add_recipe(parser: argparse.ArgumentParser) -> None:
    """Declare RECIPE and overrides, in any order."""
    # Optional for argparse, which would take an override for the recipe; `recipe_words` raises if it is not given.
    recipe = "name of a recipe (see: runner recipes), or path of a .yaml file"
    parser.add_argument("first", metavar="RECIPE", nargs="?", help=recipe)
    parser.add_argument("rest", metavar="OVERRIDE", nargs="*", help="change to the configuration, see below")


def add_run(parser: argparse.ArgumentParser) -> None:
    """Declare DIR and overrides, in any order."""
    parser.add_argument("first", metavar="DIR", nargs="?", help="directory of the run")
    parser.add_argument("rest", metavar="OVERRIDE", nargs="*", help="change to the run's configuration, see below")


def add_run_or_recipe(parser: argparse.ArgumentParser) -> None:
    """Declare DIR or RECIPE, and overrides, in any order."""
    first = "directory of a run; or a recipe, as for runner train"
    parser.add_argument("first", metavar="DIR|RECIPE", nargs="?", help=first)
    parser.add_argument("rest", metavar="OVERRIDE", nargs="*", help="change to the configuration, see below")


def recipe_words(found: argparse.Namespace, *, prog: str) -> tuple[str, list[str]]:
    """The recipe and the overrides.

    Raises:
        SpecError: there is no recipe, or a second one.
    """
    return split_words(words_of(found), prog=prog, first="RECIPE")


def key_words(found: argparse.Namespace, *, prog: str) -> tuple[str, str | None, list[str]]:
    """The recipe, the key of which there may be one after it, and the overrides.

    Raises:
        SpecError: there is no recipe, or a second key.
    """
    words = words_of(found)
    bare = bare_words(words)
    others = [*bare[:1], *bare[2:], *(word for word in words if word not in bare)]
    recipe, overrides = split_words(others, prog=prog, first="RECIPE")
    return recipe, bare[1] if len(bare) > 1 else None, overrides


def run_words(found: argparse.Namespace, *, prog: str) -> tuple[RunDir, list[str]]:
    """The run's directory and the overrides.

    Raises:
        SpecError: there is no directory, or it is not a run's, or there is a second one.
    """
    directory, overrides = split_words(words_of(found), prog=prog, first="DIR")
    return existing_run(Path(directory)), overrides


def override_words(found: argparse.Namespace, *, prog: str) -> list[str]:
    """The words of a command line that has overrides only.

    Raises:
        SpecError: there is another word.
    """
    words = words_of(found)
    others = bare_words(words)
    if others:
        rule = f"{others[0]!r} is neither a flag nor an override (key=value), which is all that {prog} RUN takes."
        raise SpecError(Fault(key="command line", message=f"{rule} See: runner train --help"))
    return words


def existing_run(path: Path) -> RunDir:
    """The directory of a run.

    Raises:
        SpecError: it is not one.
    """
    run_dir = RunDir(path.absolute())
    if not is_directory(run_dir.path) or not run_dir.specs():
        what = "is not a run's directory: it has no spec.yaml" if is_directory(path) else "is not a directory"
        rule = f"{path} {what}. `runner train` prints a run's directory as its last line."
        raise SpecError(Fault(key="DIR", message=rule))
    return run_dir


def existing_run_or_recipe(argument: str) -> RunDir | Recipe:
    """The directory of a run, or else a recipe by its address, path or name.

    Raises:
        SpecError: it is neither.
    """
    path = Path(argument)
    if is_directory(path) and (RunDir(path).specs() or argument not in recipe_files()):
        return existing_run(path)
    return find(argument)


def train_arguments(found: argparse.Namespace) -> TrainArguments:
    """What a command line of `train` asks for.

    Raises:
        SpecError: the recipe is missing, or arguments do not go together.
    """
    recipe, overrides = recipe_words(found, prog="runner train")
    refuse_directories(overrides)
    return TrainArguments(
        recipe=recipe,
        overrides=overrides,
        multirun=found.multirun or "hydra.mode=MULTIRUN" in overrides,
        config_dirs=[existing_directory(path) for path in found.config_dir],
        hydra_flags=_hydra_flags(found),
        trust=found.trust,
    )


def words_of(found: argparse.Namespace) -> list[str]:
    """The words of a command line that are no flags."""
    return [word for word in (found.first, *found.rest) if word is not None]


def refuse_directories(overrides: Sequence[str]) -> None:
    """Return if no override names an output directory of Hydra's own.

    Two launches in one second would share it, or it would be ignored.

    Raises:
        SpecError: one does.
    """
    faults = [
        Fault(
            key=theirs, message=f"the runner creates output directories itself. Use {ours}.", origin="the command line"
        )
        for theirs, ours in DIRECTORIES.items()
        if any(word.lstrip("+").startswith(f"{theirs}=") for word in overrides)
    ]
    if faults:
        raise SpecError(*faults)


def split_words(words: Sequence[str], *, prog: str, first: str) -> tuple[str, list[str]]:
    """The one word that is not an override, and the overrides.

    Args:
        first: the name of that word in the usage line.

    Raises:
        SpecError: there is no such word, or a second one.
    """
    bare = bare_words(words)
    if not bare:
        raise SpecError(Fault(key=first, message=f"must be given: {prog} {first}. See: {prog} --help"))
    if len(bare) > 1:
        rule = f"{bare[1]!r} is neither a flag nor an override (key=value), and {first} is already {bare[0]!r}."
        raise SpecError(Fault(key="command line", message=f"{rule} See: {prog} --help"))
    return bare[0], [word for word in words if word not in bare]


def bare_words(words: Sequence[str]) -> list[str]:
    """The words that are not overrides."""
    return [word for word in words if not _is_override(word)]


def _is_override(word: str) -> bool:
    key, equals, _ = word.partition("=")
    return word.startswith(("~", "+")) or (bool(equals) and "://" not in key)  # an address may hold a = of its own


def existing_directory(path: Path) -> Path:
    """A directory of config groups, as an absolute path.

    Raises:
        SpecError: it is not one.
    """
    if not is_directory(path):
        raise SpecError(Fault(key="--config-dir", message=f"{path} is not a directory."))
    return path.resolve()


def _hydra_flags(found: argparse.Namespace) -> list[str]:
    flags: list[str] = []
    for flag, value in (
        ("--cfg", found.cfg),
        ("--package", found.package),
        ("--info", found.info),
    ):
        flags += [flag, value] if value is not None else []
    flags += ["--resolve"] if found.resolve else []
    flags += ["--hydra-help"] if found.hydra_help else []
    if flags and not {"--cfg", "--info", "--hydra-help"} & set(flags):
        raise SpecError(
            Fault(
                key="command line",
                message=f"{flags[0]} needs --cfg: --cfg job {' '.join(flags)}",
            )
        )
    return flags
