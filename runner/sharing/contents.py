"""What a composition consists of: its config files, the modules that it names, and the packages that these import."""

import hashlib
import platform
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path

from runner.composition.composed import Composed
from runner.composition.recipe import Recipe, import_roots, shipped_root
from runner.config.provenance import describe_environment
from runner.errors import Fault, SpecError
from runner.sharing.modules import Modules, modules_of, targets_in

__all__ = ["config_files", "digest", "digests", "path_of", "platform_name", "recipe_modules", "versions"]

SHIPPED = "runner: "
PROJECT = "working directory: "
SHIPPED_FOLDERS = ("conf", "recipes", "user_hooks")
READ_BYTES = 1 << 20


def config_files(composed: Composed) -> list[Path]:
    """The recipe, its bases and the option files that it took, in the order in which they are merged."""
    return list(dict.fromkeys(file.path.resolve() for file in composed.origins.files))


def recipe_modules(composed: Composed) -> Modules:
    """The modules that the targets of a composition lead to."""
    return modules_of(targets_in(composed.config), import_roots(composed.recipe))


def digests(paths: Iterable[Path], recipe: Recipe) -> dict[str, str]:
    """The SHA-256 of each file, by a name that other machines understand: see `path_of`.

    Raises:
        SpecError: one cannot be read.
    """
    return {_name_of(path.resolve(), recipe): digest(path) for path in paths}


def digest(path: Path) -> str:
    """The SHA-256 of a file.

    Raises:
        SpecError: it cannot be read.
    """
    found = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(READ_BYTES):
                found.update(block)
    except OSError as error:
        raise SpecError(Fault(key="recipe", message=f"{path} cannot be read: {error.strerror}.")) from None
    return found.hexdigest()


def _name_of(path: Path, recipe: Recipe) -> str:
    """A file's path in what ships with the runner, in the recipe's root or the working directory, or the whole path."""
    shipped = shipped_root()
    if any(path.is_relative_to(shipped / folder) for folder in SHIPPED_FOLDERS) and recipe.root != shipped:
        return f"{SHIPPED}{path.relative_to(shipped).as_posix()}"
    for label, directory in (("", recipe.root), (PROJECT, Path.cwd())):
        if path.is_relative_to(directory):
            return f"{label}{path.relative_to(directory).as_posix()}"
    return str(path)


def path_of(name: str, recipe: Recipe) -> Path:
    """The file of a name that `digests` gave."""
    for label, directory in ((SHIPPED, shipped_root()), (PROJECT, Path.cwd())):
        if name.startswith(label):
            return directory / name.removeprefix(label)
    return recipe.root / name


def versions(modules: Modules) -> dict[str, str]:
    """The version of python, and of each distribution that the runner or one of the modules needs."""
    known = describe_environment()
    found: Mapping[str, str] = {"python": known["python"], **known["versions"]}
    owners = metadata.packages_distributions()
    names = sorted({name for package in modules.packages for name in owners.get(package, ())})
    return {**found, **{name: metadata.version(name) for name in names}}


def platform_name() -> str:
    """The system and the architecture, without versions: Linux x86_64."""
    return f"{platform.system()} {platform.machine()}"
