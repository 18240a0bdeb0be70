"""Which file a recipe is, and where its groups, hooks and modules are looked for. Hydra is not imported here."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from runner.config.nearest import did_you_mean, listed
from runner.errors import Fault, SpecError

__all__ = [
    "Recipe",
    "find",
    "import_roots",
    "options",
    "recipe_files",
    "search_path",
    "shipped_root",
]

SUFFIX = ".yaml"


@dataclass(frozen=True)
class Recipe:
    """A recipe's file."""

    path: Path

    @property
    def name(self) -> str:
        """As Hydra calls a primary config."""
        return self.path.stem

    @property
    def directory(self) -> Path:
        """What Hydra searches first."""
        return self.path.parent

    @property
    def root(self) -> Path:
        """Where the recipe's own conf/ and modules stand: beside its recipes/ folder, or else beside itself."""
        folder = next((parent for parent in self.path.parents if parent.name == "recipes"), None)
        return folder.parent if folder else self.directory


def shipped_root() -> Path:
    """Where the runner's own conf/, recipes/ and user_hooks/ stand: in the wheel, or in a checkout."""
    package = Path(__file__).resolve().parent.parent
    shipped = package / "_shipped"
    return shipped if shipped.is_dir() else package.parent


def find(argument: str) -> Recipe:
    """A recipe by its name in recipes/ (of the working directory, then the shipped ones), or by its path.

    Raises:
        SpecError: there is none; names the nearest and all that there are.
    """
    path = Path(argument)
    if path.suffix == SUFFIX or path.is_file():
        if not path.is_file():
            raise SpecError(
                Fault(
                    key="recipe",
                    message=f"there is no file {argument}.{_choices(argument)}",
                )
            )
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


def _choices(argument: str) -> str:
    files = recipe_files()
    name = Path(argument).stem
    return f"{did_you_mean(name, files)} There are: {listed(files)}. Or give the path of a {SUFFIX} file."


def recipe_files() -> dict[str, Path]:
    """Every recipe that a bare name reaches; the working directory's hide shipped ones of the same name."""
    found: dict[str, Path] = {}
    for folder in (shipped_root() / "recipes", Path.cwd() / "recipes"):
        for path in sorted(folder.rglob(f"*{SUFFIX}")):
            found[path.relative_to(folder).with_suffix("").as_posix()] = path.resolve()
    return dict(sorted(found.items()))


def search_path(recipe: Recipe) -> list[Path]:
    """What Hydra searches after the recipe's own directory, first to last."""
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
    """Where hooks and parts are imported from ahead of everything else, first to last."""
    return list(dict.fromkeys(map(str, (Path.cwd(), recipe.root, shipped_root()))))


def options(directories: list[Path]) -> dict[str, list[str]]:
    """Every config group with its options, found by listing folders."""
    groups: dict[str, set[str]] = {}
    for directory in directories:
        for group, option in _options_in(directory):
            groups.setdefault(group, set()).add(option)
    return {group: sorted(found) for group, found in sorted(groups.items())}


def _options_in(directory: Path) -> Iterator[tuple[str, str]]:
    for path in sorted(directory.glob(f"*/*{SUFFIX}")):
        yield path.parent.name, path.stem
