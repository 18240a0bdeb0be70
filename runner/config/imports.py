"""Imports objects by dotted path, with a run's import roots first on sys.path."""

import importlib
import sys
import traceback
from collections.abc import Sequence
from types import ModuleType
from typing import Any

from runner.config.extras import how_to_install
from runner.config.nearest import did_you_mean

__all__ = ["NotFound", "import_from", "locate"]

# fmt: off
NO_FACTORIES = frozenset((
    # programs, processes and the system
    "_posixsubprocess", "code", "codeop", "ensurepip", "gc", "marshal", "mmap", "multiprocessing", "nt", "os",
    "pip", "posix", "pty", "signal", "subprocess", "sys", "venv", "webbrowser",
    # text that becomes code
    "_frozen_importlib", "_frozen_importlib_external", "_imp", "bdb", "builtins", "cProfile", "doctest",
    "importlib", "inspect", "pdb", "profile", "pydoc", "runpy", "timeit", "zipimport",
    # calls of whatever they are given
    "_operator", "atexit", "logging", "operator",
    # memory and objects from bytes
    "_ctypes", "_pickle", "cloudpickle", "ctypes", "dill", "pickle", "shelve", "yaml",
    # files
    "_io", "genericpath", "io", "ntpath", "posixpath", "shutil", "tempfile",
    # connections
    "_socket", "ftplib", "http", "smtplib", "socket", "socketserver", "urllib", "xmlrpc",
))
# fmt: on
"""Modules that no model, dataset or part comes from. What they hold runs programs or text, changes files, opens
connections, or calls whatever it is given; a function of the user's own may use all of them.
"""


class NotFound(ValueError):
    """A dotted path cannot be imported, or must not be. The message says which part of it, and why."""


def import_from(roots: Sequence[str]) -> None:
    """Put directories first on sys.path, in their order; calling it again changes nothing."""
    sys.path[:] = [*roots, *(path for path in sys.path if path not in roots)]


def locate(path: str) -> Any:
    """Import what a dotted path names: the longest part of it that is a module, then attributes.

    Raises:
        NotFound: there is no such module or attribute, importing the module fails, or the path leads to one of
            NO_FACTORIES, also through the attributes of another module. Its own name is refused before any import.
    """
    parts = path.split(".")
    if not all(part.isidentifier() for part in parts):
        raise NotFound(f"{path!r} is not a dotted path such as package.module.name.")
    _refuse(parts[0])
    special = [part for part in parts if part.startswith("__")]
    if special:
        raise NotFound(f"targets that lead through {special[0]!r} are refused. Name a function of your own instead.")
    found: Any = _module(parts[0])
    for depth, part in enumerate(parts[1:], start=1):
        if not isinstance(found, ModuleType) or part in vars(found):
            found = _attribute(found, part, of=".".join(parts[:depth]))
        else:
            found = _submodule_or_attribute(found, ".".join(parts[: depth + 1]))
        _refuse(_home(found))
    return found


def _refuse(module: str) -> None:
    top = module.partition(".")[0]
    if top in NO_FACTORIES:
        raise NotFound(
            f"targets in the module {top!r} are refused: nothing in it builds a part or data, but it can run programs, "
            "change files or evaluate text. Name a function of your own that does what you need."
        )


def _home(found: Any) -> str:
    """The module that an object is, or that it says it comes from, whatever path has led to it."""
    if isinstance(found, ModuleType):
        return found.__name__
    try:
        home = found.__module__
    except AttributeError:  # a constant
        return ""
    return home if isinstance(home, str) else ""


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
            raise NotFound(f"there is no module {name!r}.{how_to_install(name)}") from error
        rule = f"which is not installed{_line(error)}.{how_to_install(error.name or '')}"
        raise NotFound(f"module {name!r} imports {error.name!r}, {rule}") from error
    except Exception as error:  # a user's module may raise anything while it is imported
        raise NotFound(f"importing {name!r} failed with {type(error).__name__}: {error}{_line(error)}") from error


def _line(error: BaseException) -> str:
    """The file and line at which an import failed."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "importlib" not in frame.filename]
    outside = [frame for frame in frames if frame.filename != __file__]
    return f" ({outside[-1].filename}, line {outside[-1].lineno})" if outside else ""
