"""The file `NAME.lock.yaml`: every composed value of a recipe, and under `lock:` what they were composed from.

Hydra composes it like a recipe without defaults. runner/sharing/lock.py writes it and compares it with what there is.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_origin, get_type_hints

from runner.composition.yaml_file import FileFault, parse
from runner.config.named_path import place
from runner.config.nearest import listed
from runner.errors import Fault, SpecError

__all__ = ["FORMAT", "LOCK", "Lock", "lock_of", "read_lock"]

LOCK = "lock"
"""The section of a lock file that is no part of the declaration."""
FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class Lock:
    """What a recipe was composed from, and with."""

    format: int
    recipe: str
    """The recipe's address, or its path relative to the lock file."""
    origin: str
    """The distribution or the commit that the recipe came with; "" = it is a file."""
    overrides: list[str]
    choices: dict[str, Any]
    """The option of each group."""
    values: str
    """SHA-256 of all values beside this section."""
    files: dict[str, str]
    """SHA-256 of the recipe, its bases and the option files, by name."""
    modules: dict[str, str]
    """SHA-256 of the modules of hooks and parts that are not installed."""
    packages: dict[str, str]
    """Version of python, and of each distribution that the runner or a module imports."""
    platform: str


def read_lock(path: Path) -> Lock:
    """The section `lock` of a lock file.

    Raises:
        SpecError: the file cannot be read, or has no such section.
    """
    try:
        page = parse(path)
    except FileFault as wrong:
        raise SpecError(wrong.fault(LOCK, path)) from None
    return lock_of(page.content.get(LOCK), origin=place(path, page.line(LOCK)))


def lock_of(node: Any, *, origin: str) -> Lock:
    """The section `lock`, checked.

    Raises:
        SpecError: it is not one, or is of another format.
    """
    section: Mapping[str, Any] = node if isinstance(node, Mapping) else {}
    if "format" in section and section["format"] != FORMAT:
        rule = f"its format is {section['format']}, and this version reads {FORMAT}. Lock the recipe anew: runner lock"
        raise SpecError(Fault(key=f"{LOCK}.format", message=rule, origin=origin))
    types = {name: get_origin(hint) or hint for name, hint in get_type_hints(Lock).items()}
    wrong = [name for name, kind in types.items() if not isinstance(section.get(name), kind)]
    unknown = [str(name) for name in section if name not in types]
    inner = [name for name in ("files", "modules", "packages") if name not in wrong and not _are_texts(section[name])]
    if wrong or unknown or inner:
        what = f"{listed([*wrong, *unknown, *inner])} in it" if section else "the section"
        rule = f"{what} is missing, or is nothing that `runner lock` writes. Lock the recipe anew: runner lock RECIPE"
        raise SpecError(Fault(key=LOCK, message=rule, origin=origin))
    return Lock(**section)


def _are_texts(node: Mapping[Any, Any]) -> bool:
    return all(isinstance(key, str) and isinstance(value, str) for key, value in node.items())
