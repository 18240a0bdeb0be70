"""The user's three functions: finds them, checks them without calling them, and binds their arguments.

A node with a `_target_` names a callable and its keyword arguments. An argument may itself be such a node and is built
first; with `_partial_: true` it is not called but becomes a functools.partial.
"""

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from runner.config.imports import NotFound, import_from, locate
from runner.config.models import Hook
from runner.config.parts import MISSING, TARGET, imports_any, shown
from runner.config.secret import plain
from runner.config.signatures import asks_for, binding_errors
from runner.errors import Fault, HookError

__all__ = [
    "BATCH",
    "OFFERED",
    "OPTIONAL",
    "POSITIONAL",
    "WORLD",
    "arguments_of",
    "asks",
    "faults_of",
    "hook_of",
    "offered_by_name",
    "resolve",
]

POSITIONAL = {"model": 0, "data": 0, "loss": 2, "predict": 2}
"""Positional arguments that the engine passes to each hook: loss(model, batch, **arguments)."""
OPTIONAL = ("predict",)
"""Hooks that a recipe need not have: `_target_: null`."""
WORLD = "world"
BATCH = "batch"
"""What the batch is called in a hook that gets several models, each by its name."""
OFFERED = (WORLD,)
"""Arguments that the engine gives to a hook that has a parameter of this name: `world`, the ranks of the run."""
PARTIAL = "_partial_"
UNSUPPORTED = ("_args_", "_recursive_", "_convert_")


def hook_of(node: Mapping[str, Any]) -> Hook:
    """The hook of a section."""
    return Hook(
        target=str(node[TARGET]),
        arguments={name: plain(value) for name, value in node.items() if name != TARGET},
    )


def resolve(hook: Hook, import_roots: Sequence[str]) -> Callable[..., Any]:
    """Bind the recipe's arguments to the hook's callable; nested `_target_` arguments are built now.

    Raises:
        HookError: a target cannot be imported.
    """
    import_from(import_roots)
    try:
        function = locate(hook.target)
        arguments = arguments_of(hook)
    except NotFound as missing:
        raise HookError(
            f"{hook.target} cannot be used: {missing} Looked in {', '.join(import_roots)} first."
        ) from missing
    return functools.partial(function, **arguments)


def arguments_of(hook: Hook) -> dict[str, Any]:
    """The recipe's arguments of a hook, in which nested targets are built.

    Raises:
        NotFound: one of them cannot be imported.
    """
    return {name: _value(value) for name, value in hook.arguments.items()}


def asks(hook: Hook, import_roots: Sequence[str], argument: str = WORLD, *, positional: int = 0) -> bool:
    """Whether a hook has a parameter of this name, which the engine is to give it.

    Args:
        positional: how many arguments the engine passes before.
    """
    return asks_for(resolve(Hook(target=hook.target), import_roots), argument, positional=positional)


def offered_by_name(models: Iterable[str]) -> tuple[str, ...]:
    """What a hook that gets several models may ask for: these, the batch and the ranks."""
    return (*models, BATCH, WORLD)


def _value(node: Any) -> Any:
    """An argument as the hook gets it: nested targets are built, everything else is passed as it is."""
    if isinstance(node, Mapping):
        named = {name: _value(value) for name, value in node.items() if name not in (TARGET, PARTIAL)}
        if TARGET not in node:
            return named
        function = functools.partial(locate(str(node[TARGET])), **named)
        return function if node.get(PARTIAL) else function()
    if isinstance(node, list | tuple):
        return [_value(item) for item in node]
    return node


def faults_of(
    node: Any,
    *,
    key: str,
    import_roots: Sequence[str],
    imports: Callable[[str], bool] = imports_any,
    positional: int,
    offered: Sequence[str] = OFFERED,
) -> Iterator[Fault]:
    """The faults of a hook's section. Imports the modules that it names and that may be imported; calls nothing.

    Args:
        positional: how many arguments the engine passes.
        offered: what the engine gives to a parameter of this name.
    """
    if not isinstance(node, Mapping):
        yield Fault(
            key=key,
            message=f"{shown(node)} is not a hook: it must be a mapping with a _target_ and arguments.",
        )
        return
    if PARTIAL in node:
        yield Fault(
            key=f"{key}.{PARTIAL}",
            message=f"is for arguments only: the engine calls the hook. Delete it: ~{key}.{PARTIAL}",
        )
    looking = _Looking(roots=import_roots, imports=imports)
    yield from _callable_faults(node, key=key, positional=positional, looking=looking, offered=offered)


class _Looking(NamedTuple):
    """Where targets are looked for, and which of them."""

    roots: Sequence[str]
    imports: Callable[[str], bool]


def _callable_faults(
    node: Mapping[str, Any], *, key: str, positional: int, looking: _Looking, offered: Sequence[str] = ()
) -> Iterator[Fault]:
    target = node.get(TARGET, MISSING)
    arguments = {name: value for name, value in node.items() if name not in (TARGET, PARTIAL)}
    if target == MISSING or target is None:
        yield Fault(
            key=f"{key}.{TARGET}",
            message="must be given: the dotted path of a function, package.module.name.",
        )
    elif looking.imports(str(target)):
        yield from _binding_faults(
            str(target),
            arguments,
            key=key,
            positional=positional,
            node=node,
            roots=looking.roots,
            offered=offered,
        )
    for name, value in arguments.items():
        yield from _argument_faults(value, key=f"{key}.{name}", looking=looking)


def _binding_faults(
    target: str,
    arguments: Mapping[str, Any],
    *,
    key: str,
    positional: int,
    node: Mapping[str, Any],
    roots: Sequence[str],
    offered: Sequence[str],
) -> Iterator[Fault]:
    try:
        function = locate(target)
    except NotFound as missing:
        where = f" Looked in {', '.join(roots)}, then on sys.path." if roots else ""
        yield Fault(
            key=f"{key}.{TARGET}",
            message=f"{target} cannot be imported: {missing}{where}",
        )
        return
    if not callable(function):
        yield Fault(
            key=f"{key}.{TARGET}",
            message=f"{target} is a {type(function).__name__}, which cannot be called.",
        )
    elif not node.get(PARTIAL):
        for name, message in binding_errors(function, target, positional=positional, named=arguments, offered=offered):
            yield Fault(key=f"{key}.{name or TARGET}", message=message)


def _argument_faults(value: Any, *, key: str, looking: _Looking) -> Iterator[Fault]:
    if value == MISSING:
        yield Fault(key=key, message="must be given.")
    elif isinstance(value, Mapping) and TARGET in value:
        for name in UNSUPPORTED:
            if name in value:
                yield Fault(
                    key=f"{key}.{name}",
                    message=f"{name} is not supported. Build the object in a function of your own.",
                )
        rest = {name: inner for name, inner in value.items() if name not in UNSUPPORTED}
        yield from _callable_faults(rest, key=key, positional=0, looking=looking)
    elif isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _argument_faults(inner, key=f"{key}.{name}", looking=looking)
    elif isinstance(value, list | tuple):
        for index, inner in enumerate(value):
            yield from _argument_faults(inner, key=f"{key}.{index}", looking=looking)
