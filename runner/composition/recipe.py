"""Find a recipe's file and the directories of its config groups, hooks and modules. Does not import Hydra."""

import pkgutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import NamedTuple, Protocol, cast

from runner.composition import addresses
from runner.config.named_path import is_directory, is_file, place
from runner.config.nearest import did_you_mean, listed
from runner.config.run_dir import RunDir
from runner.errors import Fault, SpecError

__all__ = [
    "AddressKind",
    "Listed",
    "Recipe",
    "find",
    "import_roots",
    "is_lock",
    "is_own",
    "needs_network",
    "options",
    "own_roots",
    "recipe_files",
    "recipes_in",
    "search_path",
    "shipped_root",
    "visible_recipes",
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


class AddressKind(Protocol):
    """What a module of runner/composition/addresses/ has."""

    FORM: str
    """What such an address looks like, for messages."""
    NETWORK: bool
    """Whether finding a recipe may use the network."""

    def find(self, argument: str) -> Recipe:
        """Find a recipe.

        Raises:
            SpecError: it is not there. One fault, with the way out.
        """
        ...

    def recipes(self) -> Iterator[Listed]:
        """The recipes that are known without being named."""
        ...


def shipped_root() -> Path:
    """Return the directory of the runner's own conf/, recipes/ and user_hooks/, in a wheel or in a checkout."""
    shipped = PACKAGE / "_shipped"
    return shipped if shipped.is_dir() else PACKAGE.parent


def find(argument: str) -> Recipe:
    """Find a recipe by its address, its path, or its name in recipes/ (the working directory's, then the shipped ones).

    A lock file comes with the recipe that it was made from.

    Raises:
        SpecError: there is none, or the argument names something else. The message suggests the most similar name and
            lists all of them.
    """
    recipe = _kind(argument).find(argument) if SCHEME in argument else Recipe(_file(argument))
    return replace(recipe, locks=_locked(recipe)) if is_lock(recipe.path) else recipe


def needs_network(argument: str) -> bool:
    """Whether finding a recipe by this argument may use the network."""
    return SCHEME in argument and _kind(argument).NETWORK


def is_lock(path: Path) -> bool:
    """Whether a file is a lock file, by its name."""
    return path.name.endswith(LOCK_SUFFIX)


def _kind(argument: str) -> AddressKind:
    kinds = {name: _load_kind(name) for name in _kind_names()}
    scheme = argument.partition(SCHEME)[0]
    found = kinds.get(scheme.partition("+")[0])
    if found is None:
        hint = f" Write git+{argument} for a repository." if scheme in ("https", "ssh", "file") else ""
        forms = " or ".join(kind.FORM for kind in kinds.values())
        rule = f"{argument!r} is no address of a recipe.{hint} Addresses are {forms}."
        raise SpecError(Fault(key="recipe", message=rule))
    return found


def _kind_names() -> list[str]:
    return sorted(module.name for module in pkgutil.iter_modules(addresses.__path__))


def _load_kind(name: str) -> AddressKind:
    return cast("AddressKind", import_module(f"{addresses.__name__}.{name}"))


def _locked(lock: Recipe) -> Recipe:
    """The recipe that a lock file was made from: an address, a shipped one, or a file that came as the lock did.

    Raises:
        SpecError: the file is no lock file, or its recipe is one, or is not there, or not in the same tree.
    """
    from runner.composition.lock_file import read_lock  # YAML, which a recipe's name does not need

    named = read_lock(lock.path).recipe
    if SCHEME in named:
        found = _kind(named).find(named)
    elif not named.endswith(SUFFIX):  # a name: what comes with the runner is elsewhere on each machine
        found = Recipe(_file(str(shipped_root() / "recipes" / f"{named}{SUFFIX}")))
    else:
        path = (lock.path.parent / named).resolve()
        if not is_file(path):
            rule = f"{path}, from which it was locked, is not there. Put it back, or lock another: runner lock RECIPE"
            raise SpecError(Fault(key="lock.recipe", message=rule, origin=place(lock.path)))
        found = Recipe(_file(str(path)), tree=lock.tree, revision=lock.revision)
    outside = found.tree is not None and not found.path.is_relative_to(found.tree)
    if outside or is_lock(found.path):
        what = f"outside of {found.tree}" if outside else "a lock file, too"
        rule = f"its recipe, {found.path}, is {what}. Lock a recipe: runner lock RECIPE"
        raise SpecError(Fault(key="lock.recipe", message=rule, origin=place(lock.path)))
    return found


def _file(argument: str) -> Path:
    path = Path(argument)
    if is_directory(path) and argument not in recipe_files():
        raise SpecError(Fault(key="recipe", message=_directory(path)))
    if path.suffix == SUFFIX or is_file(path):
        if not is_file(path):
            raise SpecError(Fault(key="recipe", message=f"there is no file {argument}.{_choices(argument)}"))
        if path.suffix != SUFFIX:
            rule = f"the name of {argument} does not end in {SUFFIX}, as that of a recipe must. Rename the file."
            raise SpecError(Fault(key="recipe", message=rule))
        return path.resolve()
    files = recipe_files()
    if argument not in files:
        raise SpecError(Fault(key="recipe", message=f"there is no recipe {argument!r}.{_choices(argument)}"))
    return files[argument]


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
    return dict(sorted((recipes_in(shipped_root() / "recipes") | recipes_in(Path.cwd() / "recipes")).items()))


def recipes_in(folder: Path) -> dict[str, Path]:
    """Map the name of each recipe in a folder to its file."""
    files = sorted(folder.rglob(f"*{SUFFIX}"))
    return {path.relative_to(folder).with_suffix("").as_posix(): path.resolve() for path in files}


def visible_recipes() -> Iterator[Listed]:
    """Every recipe that can be found: those of `recipe_files`, then those that have addresses."""
    for name, path in recipe_files().items():
        yield Listed(name, path, "comes with the runner" if Recipe(path).is_shipped else "working directory")
    for kind in _kind_names():
        yield from _load_kind(kind).recipes()


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
