"""Find a recipe's file and the directories of its config groups, hooks and modules. Does not import Hydra."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from runner.config.nearest import did_you_mean, listed
from runner.config.run_dir import RunDir
from runner.errors import Fault, SpecError

__all__ = [
    "Recipe",
    "find",
    "import_roots",
    "is_own",
    "options",
    "own_roots",
    "recipe_files",
    "search_path",
    "shipped_root",
]

SUFFIX = ".yaml"


@dataclass(frozen=True)
class Recipe:
    """A recipe, identified by its file."""

    path: Path

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
        """The directory of the recipe's conf/ and modules: the parent of its recipes/ folder, or the file's own."""
        folder = next((parent for parent in self.path.parents if parent.name == "recipes"), None)
        return folder.parent if folder else self.directory


def shipped_root() -> Path:
    """Return the directory of the runner's own conf/, recipes/ and user_hooks/, in a wheel or in a checkout."""
    package = Path(__file__).resolve().parent.parent
    shipped = package / "_shipped"
    return shipped if shipped.is_dir() else package.parent


def find(argument: str) -> Recipe:
    """Find a recipe by its path, or by its name in recipes/ (of the working directory, then the shipped ones).

    Raises:
        SpecError: there is none, or the argument names something else. The message suggests the most similar name and
            lists all of them.
    """
    path = Path(argument)
    if path.is_dir() and argument not in recipe_files():
        raise SpecError(Fault(key="recipe", message=_directory(path)))
    if path.suffix == SUFFIX or path.is_file():
        if not path.is_file():
            raise SpecError(
                Fault(
                    key="recipe",
                    message=f"there is no file {argument}.{_choices(argument)}",
                )
            )
        if path.suffix != SUFFIX:
            rule = f"the name of {argument} does not end in {SUFFIX}, as that of a recipe must. Rename the file."
            raise SpecError(Fault(key="recipe", message=rule))
        return Recipe(path.resolve())
    files = recipe_files()
    if argument not in files:
        raise SpecError(
            Fault(
                key="recipe",
                message=f"there is no recipe {argument!r}.{_choices(argument)}",
            )
        )
    return Recipe(files[argument])


def _directory(path: Path) -> str:
    if RunDir(path).specs():
        return f"{path} is the directory of a run, not a recipe. To continue the run: runner resume {path}"
    return f"{path} is a directory, not a recipe. Give the name of a recipe, or the path of a {SUFFIX} file."


def _choices(argument: str) -> str:
    files = recipe_files()
    name = Path(argument).stem
    return f"{did_you_mean(name, files)} Available: {listed(files)}. Or give the path of a {SUFFIX} file."


def recipe_files() -> dict[str, Path]:
    """Map each recipe name to its file. Recipes of the working directory hide shipped ones of the same name."""
    found: dict[str, Path] = {}
    for folder in (shipped_root() / "recipes", Path.cwd() / "recipes"):
        for path in sorted(folder.rglob(f"*{SUFFIX}")):
            found[path.relative_to(folder).with_suffix("").as_posix()] = path.resolve()
    return dict(sorted(found.items()))


def search_path(recipe: Recipe) -> list[Path]:
    """Return the directories that Hydra searches after the recipe's own, in order."""
    shipped = shipped_root()
    candidates = (
        Path.cwd() / "conf",
        Path.cwd() / "recipes",
        recipe.root / "conf",
        shipped / "recipes",
        shipped / "conf",
    )
    return [path for path in dict.fromkeys(candidates) if path.is_dir() and path != recipe.directory]


def import_roots(recipe: Recipe) -> list[str]:
    """Return the directories that hooks and parts are imported from before sys.path, in order."""
    return list(dict.fromkeys(map(str, (Path.cwd(), recipe.root, shipped_root()))))


def own_roots() -> list[str]:
    """The import roots of the person's own project: the working directory, and what comes with the runner."""
    return list(dict.fromkeys(map(str, (Path.cwd(), shipped_root()))))


def is_own(recipe: Recipe) -> bool:
    """Whether a recipe's project is in the working directory or comes with the runner; others are strangers'."""
    return any(recipe.root.is_relative_to(Path(root).resolve()) for root in own_roots())


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
