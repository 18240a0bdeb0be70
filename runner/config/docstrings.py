"""What the source of a class says about its fields and members: the string below each one."""

import ast
import inspect
from collections.abc import Iterator, Mapping
from dataclasses import is_dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType

__all__ = ["docstrings"]


def docstrings(cls: type[object]) -> dict[str, str]:
    """The docstring of each field of a dataclass, or of each member of an enum, on one line.

    Those without one are left out, and so are all of a class whose source is not there.
    """
    found: dict[str, str] = {}
    for base in reversed([cls, *filter(is_dataclass, cls.__mro__[1:])]):
        try:
            path = inspect.getsourcefile(base)
        except TypeError:  # built in
            continue
        if path is not None and Path(path).is_file():
            found |= _classes(path).get(base.__qualname__, {})
    return found


@cache  # parsing a module takes 10 ms, and every field of a part asks
def _classes(path: str) -> Mapping[str, dict[str, str]]:
    """The docstrings in every class of a file, by the qualified name of the class."""
    return MappingProxyType(dict(_within(ast.parse(Path(path).read_bytes()), "")))


def _within(node: ast.AST, above: str) -> Iterator[tuple[str, dict[str, str]]]:
    for inner in ast.iter_child_nodes(node):
        if isinstance(inner, ast.ClassDef):
            yield f"{above}{inner.name}", dict(_in(inner))
            yield from _within(inner, f"{above}{inner.name}.")
        elif isinstance(inner, ast.FunctionDef):
            yield from _within(inner, f"{above}{inner.name}.<locals>.")


def _in(definition: ast.ClassDef) -> Iterator[tuple[str, str]]:
    for field, below in pairwise(definition.body):
        match field, below:
            case (
                ast.AnnAssign(target=ast.Name(id=name)) | ast.Assign(targets=[ast.Name(id=name)]),
                ast.Expr(value=ast.Constant(value=str(text))),
            ):
                yield name, " ".join(text.split())
