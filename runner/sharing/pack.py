"""Writes a recipe, its hooks and its options as a package that pip installs and pkg:// finds.

    DIRECTORY/pyproject.toml
    DIRECTORY/README.md
    DIRECTORY/<package>/recipes/    the recipe and its bases
    DIRECTORY/<package>/conf/       the options that it takes, without those that come with the runner
    DIRECTORY/<package>/…           modules of hooks and parts, under the names by which the recipe names them

Files are copied as they are. The package is an import root of its recipes, so that no name in them changes.
"""

import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from runner import __version__
from runner.composition.composed import Composed
from runner.composition.recipe import SUFFIX, shipped_root
from runner.config.run_spec import RunSpec
from runner.errors import Fault, SpecError
from runner.sharing.contents import recipe_modules
from runner.sharing.modules import Modules

__all__ = ["Pack", "pack_of", "write_pack"]

DEFAULT_VERSION = "0.1.0"
VERSION = re.compile(r"\d+(?:\.\d+)*(?:(?:a|b|rc)\d+)?(?:\.post\d+)?(?:\.dev\d+)?(?:\+[a-z0-9]+(?:[.][a-z0-9]+)*)?")
"""A version as PEP 440 normalizes it, without epochs."""
NAME = re.compile(r"[a-z][a-z0-9_]*")
CONF = "conf"
RECIPES = "recipes"


@dataclass(frozen=True, kw_only=True)
class Pack:
    """What goes into a package."""

    package: str
    version: str
    summary: str
    recipe: str
    """The recipe's name after pkg://PACKAGE/."""
    files: Mapping[Path, Path]
    """From the path in the package to the file that is copied there."""
    dependencies: list[str]

    @property
    def distribution(self) -> str:
        """The name that pip knows."""
        return self.package.replace("_", "-")


def pack_of(composed: Composed, spec: RunSpec, *, package: str | None, summary: str) -> Pack:
    """What a package of a recipe consists of. Imports nothing, and writes nothing.

    Args:
        package: its import name; None = <recipe>_recipes.

    Raises:
        SpecError: the recipe is a lock file, or name or version are none that a package can have.
    """
    recipe = composed.recipe
    if recipe.locks is not None:
        rule = f"{recipe.path} is a lock file. Pack the recipe, and lock it where it is installed: "
        raise SpecError(Fault(key="recipe", message=f"{rule}runner pack {recipe.locks.reference}"))
    package = package or f"{re.sub(r'[^a-z0-9]+', '_', recipe.name.lower()).strip('_')}_recipes"
    if not NAME.fullmatch(package):
        rule = "is no name of a package: it has lower-case letters, digits and _, and begins with a letter."
        raise SpecError(Fault(key="--name", message=f"{package!r} {rule} Choose one: --name team_recipes"))
    version = spec.version or DEFAULT_VERSION
    if not VERSION.fullmatch(version):
        rule = "is no version that pip orders, such as 1.2 or 1.2.0rc1. Change it in the recipe."
        raise SpecError(Fault(key="version", message=f"{version!r} {rule}", origin=composed.origins.origin("version")))
    modules = recipe_modules(composed)
    return Pack(
        package=package,
        version=version,
        summary=summary or f"The recipe {recipe.name}",
        recipe=recipe.name,
        files=dict((*_config_files(composed), *_module_files(modules, composed))),
        dependencies=list(_dependencies(modules)),
    )


def _config_files(composed: Composed) -> Iterator[tuple[Path, Path]]:
    """The recipe, its bases and options, by their place in the package."""
    recipe, shipped = composed.recipe, shipped_root()
    for file in composed.origins.files:
        path = file.path.resolve()
        ships = any(path.is_relative_to(shipped / folder) for folder in (CONF, RECIPES))
        if path == recipe.path or not ships:
            root = file.path.parents[file.option.count("/")]
            folder = CONF if root.name == CONF else RECIPES
            yield Path(folder, f"{file.option.removesuffix(SUFFIX)}{SUFFIX}"), path


def _module_files(modules: Modules, composed: Composed) -> Iterator[tuple[Path, Path]]:
    """The modules, by their path in the import root that they are in: the one with the shortest path from there."""
    roots = [Path(root).resolve() for root in composed.stored().import_roots]
    for file in modules.files:
        inside = [file.resolve().relative_to(root) for root in roots if file.resolve().is_relative_to(root)]
        yield min(inside, key=lambda path: len(path.parts), default=Path(file.name)), file


def _dependencies(modules: Modules) -> Iterator[str]:
    """The runner and the distributions that modules import, at least as new as here."""
    yield f"hydra-runner>={__version__}"
    owners = metadata.packages_distributions()
    names = {name for package in modules.packages for name in owners.get(package, ())}
    for name in sorted(names - {"hydra-runner"}):
        yield f"{name}>={metadata.version(name).partition('+')[0]}"


def write_pack(pack: Pack, directory: Path) -> None:
    """Write the package's directory, which must not exist.

    Raises:
        SpecError: it does, or it cannot be written.
    """
    try:
        directory.mkdir(parents=True)
        for inner, source in pack.files.items():
            target = directory / pack.package / inner
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
        front = directory / pack.package / "__init__.py"
        if not front.exists():
            front.write_text(f'"""{pack.summary}."""\n')
        (directory / "pyproject.toml").write_text(_pyproject(pack))
        (directory / "README.md").write_text(_readme(pack))
    except FileExistsError:
        rule = f"{directory} exists already. Remove it, or choose another directory: --output DIR"
        raise SpecError(Fault(key="--output", message=rule)) from None
    except OSError as error:
        rule = f"{error.filename} cannot be written: {error.strerror}. Choose another directory: --output DIR"
        raise SpecError(Fault(key="--output", message=rule)) from error


def _pyproject(pack: Pack) -> str:
    dependencies = "\n".join(f"    {_toml(text)}," for text in pack.dependencies)
    return f"""\
[build-system]
requires = ["hatchling>=1.27"]
build-backend = "hatchling.build"

[project]
name = {_toml(pack.distribution)}
version = {_toml(pack.version)}
description = {_toml(pack.summary)}
readme = "README.md"
requires-python = ">=3.11"
dependencies = [
{dependencies}
]

[project.entry-points."runner.recipes"]
{pack.package} = {_toml(pack.package)}

[tool.hatch.build]
ignore-vcs = true               # a .gitignore above must not leave files out

[tool.hatch.build.targets.wheel]
packages = [{_toml(pack.package)}]
"""


def _toml(text: str) -> str:
    """A basic string of TOML."""
    inner = "".join(one if one.isprintable() else " " for one in text).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{inner}"'


def _readme(pack: Pack) -> str:
    address = f"pkg://{pack.package}/{pack.recipe}"
    return f"""\
# {pack.distribution}

{pack.summary}.

    pip install .
    runner check {address}
    runner train {address}
"""
