"""The parameters of a function as its source text declares them. Nothing is imported: any file may be looked at."""

import ast
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

__all__ = ["Function", "Parameter", "find_function"]

ARGUMENT = re.compile(r"^(\s+)\*{0,2}(\w+)(?: \([^)]*\))?: ", re.MULTILINE)


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """A parameter that a recipe may give by name."""

    name: str
    type: str
    """Its annotation, as it is written; empty if it has none."""
    default: str | None
    """The expression, as it is written; None = it must be given."""
    meaning: str
    """From the section Args of the docstring; may be empty."""


@dataclass(frozen=True, kw_only=True)
class Function:
    """A function, or a class that is called."""

    meaning: str
    """The first paragraph of its docstring; may be empty."""
    parameters: list[Parameter]
    takes_more: bool
    """Whether it has **arguments."""


def find_function(target: str, roots: Sequence[str], *, positional: int = 0) -> Function | None:
    """The function that a dotted path names in a file below one of the directories; None if it is not found there.

    Args:
        roots: as for an import, the first one that has the module counts.
        positional: how many parameters the runner passes itself.
    """
    module, _, name = target.rpartition(".")
    if not all(part.isidentifier() for part in target.split(".")) or not module:
        return None
    places = [Path(root, *module.split(".")) for root in roots]
    files = (file for place in places for file in (place / "__init__.py", place.with_suffix(".py")) if file.is_file())
    path = next(files, None)
    if path is None:
        return None
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError, OSError, RecursionError, MemoryError):  # `runner check` says what is wrong with it
        return None
    found = [node for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == name]
    if not found or found[-1].decorator_list:  # what a decorator makes of a function is not in this text
        return None
    return _function(found[-1], positional=positional)


def _function(node: ast.FunctionDef | ast.ClassDef, *, positional: int) -> Function | None:
    text = ast.get_docstring(node) or ""
    if isinstance(node, ast.FunctionDef):
        return _of_arguments(node.args, text, skipped=positional)
    made = [one for one in node.body if isinstance(one, ast.FunctionDef) and one.name == "__init__"]
    if not made:
        return None  # nor what a base class takes
    return _of_arguments(made[-1].args, f"{text}\n{ast.get_docstring(made[-1]) or ''}", skipped=positional + 1)


def _of_arguments(arguments: ast.arguments, text: str, *, skipped: int) -> Function:
    by_position = [*arguments.posonlyargs, *arguments.args]
    defaults = [*([None] * (len(by_position) - len(arguments.defaults))), *arguments.defaults]
    first = max(skipped, len(arguments.posonlyargs))
    pairs = [*zip(by_position[first:], defaults[first:], strict=True)]
    pairs += zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    meanings = dict(_meanings(text))
    return Function(
        meaning=" ".join(text.partition("\n\n")[0].split()),
        parameters=[
            Parameter(
                name=argument.arg,
                type="" if argument.annotation is None else ast.unparse(argument.annotation),
                default=None if default is None else ast.unparse(default),
                meaning=meanings.get(argument.arg, ""),
            )
            for argument, default in pairs
        ],
        takes_more=arguments.kwarg is not None,
    )


def _meanings(text: str) -> Iterator[tuple[str, str]]:
    """The entries of a docstring's section Args."""
    _, _, section = text.partition("\nArgs:\n")
    section = re.split(r"^\S", section, maxsplit=1, flags=re.MULTILINE)[0]
    found = list(ARGUMENT.finditer(section))
    outer = [match for match in found if match[1] == found[0][1]]
    for match, after in zip_longest(outer, outer[1:]):
        yield match[2], " ".join(section[match.end() : after.start() if after else None].split())
