"""A recipe's file and the directories of its config groups, hooks and modules. Does not import Hydra."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

__all__ = [
    "Listed",
    "Recipe",
    "import_roots",
    "is_lock",
    "is_own",
    "options",
    "own_roots",
    "recipe_files",
    "recipes_in",
    "search_path",
    "shipped_root",
]

PACKAGE = Path(__file__).resolve().parent.parent
SUFFIX = ".yaml"
LOCK_SUFFIX = ".lock.yaml"
SCHEME = "://"


@dataclass(frozen=True)
class Recipe:
    """A recipe, identified by its file."""

    path: Path
    tree: Path | None = None
    """The package or repository that it came with; None = it was found by its path."""
    address: str = ""
    """What finds the same recipe again, where that is not its path."""
    origin: str = ""
    """Where it came from, in words, if it has an address: team-recipes 1.2."""
    revision: str = ""
    """What names every file that it came with, if the person has not put them there: a repository and a commit."""
    locks: "Recipe | None" = None
    """The recipe that it was locked from, if it is a lock file."""

    @property
    def name(self) -> str:
        """Hydra's name for the file as a primary config: the file name without its suffix."""
        return self.path.stem

    @property
    def directory(self) -> Path:
        """The directory of the file; Hydra searches it first."""
        return self.path.parent

    @property
    def root(self) -> Path:
        """The directory of the recipe's conf/ and modules.

        The parent of its recipes/ folder; without one, the tree that it came with, or the file's own directory. A lock
        file has that of its recipe.
        """
        if self.locks is not None:
            return self.locks.root
        return self._root

    @property
    def _root(self) -> Path:
        parents = [path for path in self.path.parents if self.tree is None or path.is_relative_to(self.tree)]
        folder = next((parent for parent in parents if parent.name == "recipes"), None)
        return folder.parent if folder else self.tree or self.directory

    @property
    def source(self) -> "Recipe":
        """The recipe that it was locked from; itself, if it is no lock file."""
        return self.locks or self

    @property
    def is_own(self) -> bool:
        """Whether the person has chosen the file, whatever it was locked from; see `is_own`."""
        if self.revision:
            return False
        places = [*(Path(root).resolve() for root in own_roots()), PACKAGE]
        return self.tree is not None or any(self._root.is_relative_to(place) for place in places)

    @property
    def is_shipped(self) -> bool:
        """Whether it comes with the runner; in a checkout, it does so outside of that only."""
        return self.path.is_relative_to(shipped_root() / "recipes") and Path.cwd() != shipped_root()

    @property
    def reference(self) -> str:
        """How a command line names it, whatever the working directory is."""
        return self.address or str(self.path)


class Listed(NamedTuple):
    """A recipe as `runner recipes` shows it."""

    name: str
    """By which `find` finds it."""
    path: Path
    origin: str


def shipped_root() -> Path:
    """Return the directory of the runner's own conf/, recipes/ and user_hooks/, in a wheel or in a checkout."""
    shipped = PACKAGE / "_shipped"
    return shipped if shipped.is_dir() else PACKAGE.parent


def is_lock(path: Path) -> bool:
    """Whether a file is a lock file, by its name."""
    return path.name.endswith(LOCK_SUFFIX)


def recipe_files() -> dict[str, Path]:
    """Map each recipe name to its file. Recipes of the working directory hide shipped ones of the same name."""
    return dict(sorted((recipes_in(shipped_root() / "recipes") | recipes_in(Path.cwd() / "recipes")).items()))


def recipes_in(folder: Path) -> dict[str, Path]:
    """Map the name of each recipe in a folder to its file."""
    files = sorted(folder.rglob(f"*{SUFFIX}"))
    return {path.relative_to(folder).with_suffix("").as_posix(): path.resolve() for path in files}


def search_path(recipe: Recipe) -> list[Path]:
    """Return the directories that Hydra searches after the recipe's own, in order.

    What came with a recipe from a package or a repository goes before what the working directory has.
    """
    project = [Path.cwd() / "conf", Path.cwd() / "recipes"]
    own = [recipe.root / "conf", recipe.root / "recipes"]
    shipped = [shipped_root() / "recipes", shipped_root() / "conf"]
    candidates = [*(own + project if recipe.source.tree else project + own), *shipped]
    return [path for path in dict.fromkeys(candidates) if path.is_dir() and path != recipe.directory]


def import_roots(recipe: Recipe) -> list[str]:
    """Return the directories that hooks and parts are imported from before sys.path, in order; see `search_path`."""
    roots = [Path.cwd(), recipe.root]
    return list(dict.fromkeys(map(str, (*(reversed(roots) if recipe.source.tree else roots), shipped_root()))))


def own_roots() -> list[str]:
    """The import roots of the person's own project: the working directory, and what comes with the runner."""
    return list(dict.fromkeys(map(str, (Path.cwd(), shipped_root()))))


def is_own(recipe: Recipe) -> bool:
    """Whether the person has chosen the code that a recipe names; otherwise it is a stranger's.

    Its project is in the working directory, comes with the runner, or is a package that was installed.
    """
    return recipe.is_own and recipe.source.is_own


def options(directories: list[Path]) -> dict[str, list[str]]:
    """Map each config group to its options, as found by listing the directories."""
    groups: dict[str, set[str]] = {}
    for directory in directories:
        for group, option in _options_in(directory):
            groups.setdefault(group, set()).add(option)
    return {group: sorted(found) for group, found in sorted(groups.items())}


def _options_in(directory: Path) -> Iterator[tuple[str, str]]:
    for path in sorted(directory.glob(f"*/*{SUFFIX}")):
        yield path.parent.name, path.stem
