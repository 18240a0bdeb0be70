"""Whether a function takes the arguments that a recipe gives it, told argument by argument."""

import inspect
from collections.abc import Callable, Iterable, Iterator
from inspect import Parameter
from typing import Any

from runner.config.nearest import did_you_mean

__all__ = ["asks_for", "binding_errors"]

BY_NAME = (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)


def asks_for(function: Callable[..., Any], argument: str, *, positional: int = 0) -> bool:
    """Whether a function has a parameter of this name, beyond its first positional ones, that can be given by name."""
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (ValueError, TypeError):
        return False  # a built-in without a signature
    given = {p.name for p in _positional(parameters)[:positional]}
    return any(p.name == argument and p.kind in BY_NAME and p.name not in given for p in parameters)


def binding_errors(
    function: Callable[..., Any], name: str, *, positional: int, named: Iterable[str], offered: Iterable[str] = ()
) -> Iterator[tuple[str, str]]:
    """Why a function cannot be called with these arguments.

    Args:
        name: of the function, in the recipe.
        offered: arguments that the runner gives to a function that has a parameter of this name.

    Yields:
        The name of an argument (empty for positional ones) and a message about it.
    """
    try:
        signature = inspect.signature(function)
    except (ValueError, TypeError):
        return  # a built-in without a signature
    called = f"{name}{_shown(signature)}"
    parameters = list(signature.parameters.values())
    takes = _positional(parameters)
    if len(takes) < positional and not any(p.kind is Parameter.VAR_POSITIONAL for p in parameters):
        yield (
            "",
            f"{called} must take {positional} positional argument{'s' if positional > 1 else ''} first.",
        )
    by_name = [p for p in parameters if p.kind in BY_NAME]
    given = {p.name for p in takes[:positional]}
    given |= {argument for argument in offered if asks_for(function, argument, positional=positional)}
    free = [p for p in by_name if p.name not in given]
    anything = any(p.kind is Parameter.VAR_KEYWORD for p in parameters)
    named = list(named)
    for argument in named:
        if argument in given:
            yield (
                argument,
                f"{called} gets {argument} from the runner: a recipe must not give it.",
            )
        elif not anything and argument not in {p.name for p in free}:
            yield (
                argument,
                f"{called} does not take {argument!r}.{did_you_mean(argument, (p.name for p in free))}",
            )
    only_named = [p for p in free if p.kind is Parameter.KEYWORD_ONLY]
    for parameter in (*takes[positional:], *only_named):
        if parameter.default is Parameter.empty and parameter.name not in (*named, *given):
            yield (
                parameter.name,
                f"{called} needs {parameter.name!r}, which is not given.",
            )


def _positional(parameters: Iterable[Parameter]) -> list[Parameter]:
    return [p for p in parameters if p.kind in (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)]


def _shown(signature: inspect.Signature) -> str:
    """A signature without annotations."""
    bare = [p.replace(annotation=Parameter.empty) for p in signature.parameters.values()]
    return str(signature.replace(parameters=bare, return_annotation=inspect.Signature.empty))
