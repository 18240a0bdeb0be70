"""What stands behind `runner train`: a recipe, overrides, and Hydra's flags, in any order."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from runner.errors import Fault, SpecError

__all__ = ["TrainArguments", "parse_train", "split_words"]

INFO = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")

DIRECTORIES = {"hydra.run.dir": "run.dir", "hydra.sweep.dir": "sweep.dir"}
"""Hydra's keys that name an output directory, and ours instead."""


class Parser(argparse.ArgumentParser):
    """Raises instead of leaving the process."""

    def error(self, message: str) -> NoReturn:
        """A command line that cannot be read is a declaration that is wrong."""
        raise SpecError(Fault(key="command line", message=f"{message}. See: {self.prog} --help"))


@dataclass(frozen=True, kw_only=True)
class TrainArguments:
    """A command line of `train`."""

    recipe: str
    overrides: list[str]
    multirun: bool
    config_dirs: list[Path]
    shows: list[str]
    """Hydra's flags that print something instead of running: handed to Hydra as they are."""


def parse_train(argv: Sequence[str]) -> TrainArguments:
    """Split a command line.

    Raises:
        SpecError: a flag that there is not, or a second recipe.
    """
    parser = Parser(prog="runner train", add_help=False, allow_abbrev=False)
    parser.add_argument("words", nargs="*")
    parser.add_argument("-r", "--run", action="store_true")
    parser.add_argument("-m", "--multirun", action="store_true")
    parser.add_argument("-cd", "--config-dir", action="append", default=[], type=Path)
    parser.add_argument("-c", "--cfg", choices=["job", "hydra", "all"])
    parser.add_argument("-p", "--package")
    parser.add_argument("-i", "--info", nargs="?", const="all", choices=INFO)
    parser.add_argument("--resolve", action="store_true")
    parser.add_argument("--hydra-help", action="store_true")
    found = parser.parse_intermixed_args(list(argv))
    recipe, overrides = split_words(found.words, prog="runner train", first="RECIPE")
    _refuse_directories(overrides)
    return TrainArguments(
        recipe=recipe,
        overrides=overrides,
        multirun=found.multirun or "hydra.mode=MULTIRUN" in overrides,
        config_dirs=[_directory(path) for path in found.config_dir],
        shows=_shows(found),
    )


def _refuse_directories(overrides: Sequence[str]) -> None:
    """Hydra's own output directories would be shared by launches in one second, or silently not used."""
    faults = [
        Fault(key=theirs, message=f"the runner claims directories itself. Use {ours}.", origin="the command line")
        for theirs, ours in DIRECTORIES.items()
        if any(word.lstrip("+").startswith(f"{theirs}=") for word in overrides)
    ]
    if faults:
        raise SpecError(*faults)


def split_words(words: Sequence[str], *, prog: str, first: str) -> tuple[str, list[str]]:
    """The first bare word, and the overrides.

    Args:
        first: what the bare word is called.

    Raises:
        SpecError: there is none, or a second one.
    """
    bare = [word for word in words if "=" not in word and not word.startswith(("~", "+"))]
    if not bare:
        raise SpecError(Fault(key=first, message=f"must be given: {prog} {first}. See: {prog} --help"))
    if len(bare) > 1:
        rule = f"{bare[1]!r} is neither a flag nor an override (key=value), and {bare[0]!r} is named already."
        raise SpecError(Fault(key="command line", message=f"{rule} See: {prog} --help"))
    return bare[0], [word for word in words if word not in bare]


def _directory(path: Path) -> Path:
    if not path.is_dir():
        raise SpecError(Fault(key="--config-dir", message=f"{path} is not a directory."))
    return path.resolve()


def _shows(found: Any) -> list[str]:
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
                message=f"{flags[0]} goes with --cfg: --cfg job {' '.join(flags)}",
            )
        )
    return flags
