"""Find a recipe by what the command line names: an address, a path, a name, or a lock file. Does not import Hydra."""

import pkgutil
from collections.abc import Iterator
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Protocol, cast

from runner.composition import addresses
from runner.composition.recipe import SCHEME, SUFFIX, Listed, Recipe, is_lock, recipe_files, shipped_root
from runner.config.named_path import is_directory, is_file, place
from runner.config.nearest import did_you_mean, listed
from runner.config.run_dir import RunDir
from runner.errors import Fault, SpecError

__all__ = ["AddressKind", "find", "needs_network", "visible_recipes"]


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


def visible_recipes() -> Iterator[Listed]:
    """Every recipe that can be found: those of `recipe_files`, then those that have addresses."""
    for name, path in recipe_files().items():
        yield Listed(name, path, "comes with the runner" if Recipe(path).is_shipped else "working directory")
    for kind in _kind_names():
        yield from _load_kind(kind).recipes()


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
