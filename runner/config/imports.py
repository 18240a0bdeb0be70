"""Imports objects by dotted path, with a run's import roots first on sys.path."""

import importlib
import sys
import traceback
from collections.abc import Sequence
from types import ModuleType
from typing import Any

from runner.config.nearest import did_you_mean

__all__ = ["NotFound", "import_from", "locate"]


class NotFound(Exception):
    """A dotted path cannot be imported. The message says which part of it, and why."""


def import_from(roots: Sequence[str]) -> None:
    """Put directories first on sys.path, in their order; calling it again changes nothing."""
    sys.path[:] = [*roots, *(path for path in sys.path if path not in roots)]


def locate(path: str) -> Any:
    """Import what a dotted path names: the longest part of it that is a module, then attributes.

    Raises:
        NotFound: there is no such module or attribute, or importing the module fails.
    """
    parts = path.split(".")
    if not all(part.isidentifier() for part in parts):
        raise NotFound(f"{path!r} is not a dotted path such as package.module.name.")
    found: Any = _module(parts[0])
    for depth, part in enumerate(parts[1:], start=1):
        if part in vars(found) or not isinstance(found, ModuleType):
            found = _attribute(found, part, of=".".join(parts[:depth]))
        else:
            found = _submodule_or_attribute(found, ".".join(parts[: depth + 1]))
    return found


def _submodule_or_attribute(parent: ModuleType, path: str) -> Any:
    before, _, name = path.rpartition(".")
    if "__path__" not in vars(parent):
        return _attribute(parent, name, of=before)
    try:
        return _module(path)
    except NotFound as missing:
        if not isinstance(missing.__cause__, ModuleNotFoundError) or missing.__cause__.name != path:
            raise
    return _attribute(parent, name, of=before)


def _attribute(owner: Any, name: str, *, of: str) -> Any:
    try:
        return getattr(owner, name)
    except AttributeError:
        where = f" ({_where(owner)})" if isinstance(owner, ModuleType) else ""
        near = did_you_mean(name, (known for known in dir(owner) if not known.startswith("_")))
        raise NotFound(f"{of}{where} has no {name!r}.{near}") from None
    except (ImportError, RuntimeError) as error:  # of a module that imports its members when they are asked for
        raise NotFound(f"importing {of}.{name} failed with {type(error).__name__}: {error}") from error


def _where(module: ModuleType) -> str:
    """The file of a module, or the directories of a namespace package."""
    return str(module.__file__ or ", ".join(module.__path__))


def _module(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name == name:
            raise NotFound(f"there is no module {name!r}.") from error
        raise NotFound(f"module {name!r} imports {error.name!r}, which is not installed{_line(error)}.") from error
    except Exception as error:  # a user's module may raise anything while it is imported
        raise NotFound(f"importing {name!r} failed with {type(error).__name__}: {error}{_line(error)}") from error


def _line(error: BaseException) -> str:
    """The file and line at which an import failed."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "importlib" not in frame.filename]
    outside = [frame for frame in frames if frame.filename != __file__]
    return f" ({outside[-1].filename}, line {outside[-1].lineno})" if outside else ""
