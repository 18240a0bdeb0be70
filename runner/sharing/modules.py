"""Which modules a declaration's targets lead to, found by reading source files: nothing is imported.

Modules in a recipe's import roots are followed through their import statements, wherever in the file these stand. What
a module imports by a name that it computes is not found.
"""

import ast
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from runner.config.parts import TARGET

__all__ = ["Modules", "modules_of", "targets_in"]

RUNNER = "runner"
FOREIGN = "target"
"""The key by which a part of the runner is given a class of another library."""


@dataclass(frozen=True)
class Modules:
    """What targets lead to."""

    files: list[Path] = field(default_factory=list)
    """Source files in the import roots, in the order in which they are reached."""
    packages: list[str] = field(default_factory=list)
    """Top-level modules that are looked for elsewhere, without those of Python itself."""


def modules_of(targets: Iterable[str], roots: Sequence[str]) -> Modules:
    """The modules of dotted paths, and what they import.

    Args:
        roots: directories that are searched before the rest of sys.path, in order.
    """
    found = Modules()
    waiting, seen = list(dict.fromkeys(targets)), set[str]()
    while waiting:
        name = waiting.pop(0)
        top = name.partition(".")[0]
        if name in seen or top == RUNNER:
            continue
        seen.add(name)
        files = _files(name, roots)
        if not files and top not in found.packages and top not in sys.stdlib_module_names:
            found.packages.append(top)
        for module, file in files:
            if file not in found.files:
                found.files.append(file)
                waiting += _imported(module, file)
    return found


def targets_in(node: Any) -> list[str]:
    """Every target in a configuration, each once."""
    return list(dict.fromkeys(_targets(node, seen=set())))


def _targets(node: Any, *, seen: set[int]) -> Iterator[str]:
    """YAML may name one node many times over: each is looked at once."""
    if isinstance(node, Mapping | list) and id(node) not in seen:
        seen.add(id(node))
        if isinstance(node, Mapping):
            named = (TARGET, FOREIGN) if TARGET in node else ()
            yield from (node[key] for key in named if isinstance(node.get(key), str))
            node = list(node.values())
        for inner in node:
            yield from _targets(inner, seen=seen)


def _files(name: str, roots: Sequence[str]) -> list[tuple[str, Path]]:
    """The source files that importing a dotted path runs, packages first, as Python looks for them."""
    found: list[tuple[str, Path]] = []
    places, parts = [Path(root) for root in roots], name.split(".")
    for depth, part in enumerate(parts, start=1):
        module, spaces = ".".join(parts[:depth]), []
        for place in places:
            if (package := place / part / "__init__.py").is_file():
                found.append((f"{module}.", package))
                spaces = [place / part]
                break
            if (file := place / f"{part}.py").is_file():
                return [*found, (module, file)]
            if (place / part).is_dir():
                spaces.append(place / part)
        if not spaces:
            break  # an attribute, or a module that is not here
        places = spaces
    return found


def _imported(module: str, file: Path) -> list[str]:
    """The dotted paths in the import statements of a file.

    Args:
        module: its dotted name; a package's ends in a dot.
    """
    try:
        tree = ast.parse(file.read_bytes())
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
        return []  # importing it will say what is wrong
    names: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = module.split(".")[: -node.level] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            names += [f"{base}.{alias.name}" if base else alias.name for alias in node.names if alias.name != "*"]
            names += [base] if any(alias.name == "*" for alias in node.names) else []
    return names
