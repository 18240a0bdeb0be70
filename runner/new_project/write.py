"""Writes a new project: all of it, checked, or nothing."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from string import Template

from runner.composition.compose import compose
from runner.composition.recipe import Recipe, shipped_root
from runner.errors import DiskError, Fault, SpecError
from runner.new_project.answers import NO_TRACKER, Answers

__all__ = ["check_target", "write"]

TEMPLATES = Path(__file__).parent / "templates"
FILES = {
    "README.md": "README.md.tmpl",
    "recipes/$name.yaml": "recipe.yaml.tmpl",
    "user_hooks/$name.py": "hooks.py.tmpl",
    "conf/hardware/this_machine.yaml": "hardware.yaml.tmpl",
    "tests/test_$name.py": "test.py.tmpl",
    ".gitignore": "gitignore.tmpl",
}
"""The project's files, in the order in which they are read, and their templates."""
ITEMS = 64
"""Of one optimizer step, at least: every process gets as many of them."""
ALLOWED = {".git"}
"""What may be in the directory before: a repository that was made first."""


def check_target(directory: Path) -> None:
    """Return if a project may be written into this directory.

    Raises:
        SpecError: it is not new, or holds something; nothing is ever overwritten.
    """
    if directory.is_symlink() and not directory.exists():
        raise SpecError(Fault(key="DIR", message=f"{directory} is a link that leads nowhere. Choose a new directory."))
    nearest = next(path for path in (directory, *directory.absolute().parents) if path.exists())
    if not nearest.is_dir():
        raise SpecError(Fault(key="DIR", message=f"{nearest} is a file. Choose a new directory."))
    there = sorted(path.name for path in directory.iterdir() if path.name not in ALLOWED) if directory.exists() else []
    if there:
        rule = "A project needs a directory that is new, or empty but for .git."
        raise SpecError(Fault(key="DIR", message=f"{directory} is not empty: it has {there[0]}. {rule}"))


def write(directory: Path, answers: Answers) -> list[str]:
    """Write the project.

    Returns:
        The paths of its files, relative to the directory.

    Raises:
        SpecError: the answers contradict each other or what this machine has, or the directory is not empty.
        DiskError: a file cannot be written. Nothing is left behind.
    """
    check_target(directory)
    directory = directory.absolute()
    try:
        with _staged(directory) as staged:
            names = _render(staged, answers)
            _check(staged, answers)
            _move(staged, directory)
    except OSError as error:
        raise DiskError(f"cannot write the project: {error.filename}: {error.strerror}.") from error
    return names


@contextlib.contextmanager
def _staged(directory: Path) -> Iterator[Path]:
    """A directory beside the final one, on its file system; removed with what is still in it."""
    place = next(path for path in (directory, *directory.parents) if path.is_dir())
    with tempfile.TemporaryDirectory(prefix=".runner-init-", dir=place) as staged:
        yield Path(staged)


def _render(staged: Path, answers: Answers) -> list[str]:
    tracker = "" if answers.tracker == NO_TRACKER else answers.tracker
    items = -(-ITEMS // answers.processes) * answers.processes
    values = {**asdict(answers), "tracker": tracker, "items": items}
    names = {Template(name).substitute(values): template for name, template in FILES.items()}
    for name, template in names.items():
        path = staged / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(Template((TEMPLATES / template).read_text()).substitute(values))
    return list(names)


def _check(staged: Path, answers: Answers) -> None:
    """Let the parts check the declaration; the hooks are not imported."""
    recipe = Recipe(staged / "recipes" / f"{answers.name}.yaml")
    composed = compose(recipe, (), directories=[staged / "conf", shipped_root() / "conf"])
    try:
        composed.read_without_imports()
    except SpecError as wrong:
        # The files that the values came from are about to go: the answers are where they really came from.
        raise SpecError(*(Fault(key=fault.key, message=fault.message) for fault in wrong.faults)) from None


def _move(staged: Path, directory: Path) -> None:
    """Move what is staged to its place. Directories that are made for it are removed again if that fails."""
    made = [path for path in (directory, *directory.parents) if not path.exists()]
    moved: list[Path] = []
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for path in sorted(staged.iterdir()):
            target = directory / path.name
            if os.path.lexists(target):
                raise SpecError(Fault(key="DIR", message=f"{target} has appeared meanwhile. Nothing was written."))
            moved.append(path.rename(target))
    except BaseException:
        for path in moved:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        for path in made:
            with contextlib.suppress(OSError):
                path.rmdir()
        raise
