"""Recipes of installed packages: pkg://PACKAGE/NAME.

A package announces them by an entry point of the group `runner.recipes`, whose value is the package that holds the
folders recipes/, conf/ and modules of hooks. Nothing of it is imported to find them.
"""

from collections.abc import Iterator
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from runner.composition.recipe import SUFFIX, Listed, Recipe, recipes_in
from runner.config.nearest import did_you_mean, listed
from runner.errors import Fault, SpecError

__all__ = ["FORM", "NETWORK", "find", "recipes"]

FORM = "pkg://PACKAGE/NAME"
NETWORK = False
GROUP = "runner.recipes"
SCHEME = "pkg://"


def find(argument: str) -> Recipe:
    """Find a recipe of a package that is installed.

    Raises:
        SpecError: no package announces recipes by that name, or it has none, or not this one.
    """
    package, _, name = argument.removeprefix(SCHEME).partition("/")
    point = _announced(package)
    directory = _directory(point)
    files = {} if directory is None else recipes_in(directory / "recipes")
    if directory is None or not files:
        where = f"{directory}/recipes" if directory else f"the package {point.module}, which cannot be found"
        raise _fault(f"{_origin(point)} announces recipes as {package!r}, but there are none in {where}. Reinstall it.")
    name = name.removesuffix(SUFFIX)
    if name not in files:
        rule = f"{_origin(point)} has no recipe {name!r}." if name else f"{argument} names no recipe."
        raise _fault(f"{rule}{did_you_mean(name, files)} Available: {listed(f'{SCHEME}{package}/{n}' for n in files)}.")
    return Recipe(files[name], tree=directory, address=f"{SCHEME}{package}/{name}", origin=_origin(point))


def recipes() -> Iterator[Listed]:
    """Every recipe that an installed package announces."""
    for point in sorted(metadata.entry_points(group=GROUP), key=lambda point: point.name):
        directory = _directory(point)
        for name, path in recipes_in(directory / "recipes").items() if directory else ():
            yield Listed(name=f"{SCHEME}{point.name}/{name}", path=path, origin=_origin(point))


def _announced(package: str) -> metadata.EntryPoint:
    points = list(metadata.entry_points(group=GROUP))
    found = [point for point in points if point.name == package]
    if len(found) == 1:
        return found[0]
    if found:
        raise _fault(
            f"{listed(map(_origin, found))} all announce recipes as {package!r}. Uninstall all but one of them."
        )
    there = listed(f"{point.name} ({_origin(point)})" for point in points)
    installed = package.isidentifier() and package in metadata.packages_distributions()
    what = (
        f"the package {package!r} is installed, but announces no recipes"
        if installed
        else (f"no installed package announces recipes as {package!r}")
    )
    rule = f"{what}.{did_you_mean(package, (point.name for point in points))} Those that do: {there}."
    raise _fault(f"{rule} Install one that has the entry point group {GROUP}; `runner pack` makes such packages.")


def _directory(point: metadata.EntryPoint) -> Path | None:
    """The directory of the package that an entry point names; none of it is imported."""
    top, *inner = point.module.split(".")
    spec = find_spec(top)
    locations = spec.submodule_search_locations if spec is not None else None
    candidates = (Path(location, *inner) for location in locations or ())
    return next((path.resolve() for path in candidates if path.is_dir()), None)


def _origin(point: metadata.EntryPoint) -> str:
    return f"{point.dist.name} {point.dist.version}" if point.dist is not None else point.value


def _fault(message: str) -> SpecError:
    return SpecError(Fault(key="recipe", message=message))
