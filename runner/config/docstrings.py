"""What the source of a class says about its fields and members: the string below each one."""

import ast
import inspect
import textwrap
from collections.abc import Iterator
from itertools import pairwise

__all__ = ["docstrings"]


def docstrings(cls: type[object]) -> dict[str, str]:
    """The docstring of each field of a dataclass, or of each member of an enum, on one line.

    Those without one are left out, and so are all of a class whose source is not there.
    """
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        try:
            source = inspect.getsource(base)
        except (OSError, TypeError):  # built in, or made while the program runs
            continue
        definition = ast.parse(textwrap.dedent(source)).body[0]
        found.update(_in(definition) if isinstance(definition, ast.ClassDef) else ())
    return found


def _in(definition: ast.ClassDef) -> Iterator[tuple[str, str]]:
    for field, below in pairwise(definition.body):
        match field, below:
            case (
                ast.AnnAssign(target=ast.Name(id=name)) | ast.Assign(targets=[ast.Name(id=name)]),
                ast.Expr(value=ast.Constant(value=str(text))),
            ):
                yield name, " ".join(text.split())
