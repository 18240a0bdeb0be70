"""Whether a function takes the arguments that a recipe gives it, told argument by argument."""

import inspect
from collections.abc import Callable, Iterable, Iterator
from inspect import Parameter
from typing import Any

from runner.config.nearest import did_you_mean

__all__ = ["binding_errors"]


def binding_errors(
    function: Callable[..., Any], name: str, *, positional: int, named: Iterable[str]
) -> Iterator[tuple[str, str]]:
    """Everything that keeps `function(*so_many_positional, **named)` from binding.

    Args:
        name: what the recipe calls the function.

    Yields:
        The argument (or the empty string for the positional ones) and a sentence about it.
    """
    try:
        signature = inspect.signature(function)
    except (ValueError, TypeError):
        return  # built-ins without a signature: only calling them would tell
    called = f"{name}{_shown(signature)}"
    parameters = list(signature.parameters.values())
    takes = [p for p in parameters if p.kind in (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)]
    if len(takes) < positional and not any(p.kind is Parameter.VAR_POSITIONAL for p in parameters):
        yield (
            "",
            f"{called} must take {positional} positional argument{'s' if positional > 1 else ''} first.",
        )
    given = {p.name for p in takes[:positional]}
    by_name = [p for p in parameters if p.kind in (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)]
    free = [p for p in by_name if p.name not in given]
    anything = any(p.kind is Parameter.VAR_KEYWORD for p in parameters)
    named = list(named)
    for argument in named:
        if argument in given:
            yield (
                argument,
                f"{called} is given {argument} by the runner: a recipe must not give it too.",
            )
        elif not anything and argument not in {p.name for p in free}:
            yield (
                argument,
                f"{called} does not take {argument!r}.{did_you_mean(argument, (p.name for p in free))}",
            )
    only_named = [p for p in free if p.kind is Parameter.KEYWORD_ONLY]
    for parameter in (*takes[positional:], *only_named):
        if parameter.default is Parameter.empty and parameter.name not in named:
            yield (
                parameter.name,
                f"{called} needs {parameter.name!r}, and nothing gives it.",
            )


def _shown(signature: inspect.Signature) -> str:
    """Names and defaults; annotations of long signatures would bury them."""
    bare = [p.replace(annotation=Parameter.empty) for p in signature.parameters.values()]
    return str(signature.replace(parameters=bare, return_annotation=inspect.Signature.empty))
