"""From a node of the composed configuration to a typed object: a part by its `_target_`, a section by its class."""

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, cast, get_type_hints

from runner.config.convert import Unfit, convert
from runner.config.imports import NotFound, locate
from runner.config.nearest import did_you_mean, listed
from runner.config.signatures import misfits
from runner.errors import Fault

__all__ = ["MISSING", "TARGET", "Built", "build_part", "typed"]

MISSING = "???"
"""What a value that somebody must still give is written as."""
TARGET = "_target_"

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Built(Generic[T]):
    """What could be made of a node. With faults, the value has defaults where the faults are, or is None."""

    value: T | None
    faults: list[Fault]


def typed(cls: type[T], values: Mapping[str, Any], *, key: str) -> Built[T]:
    """Make a dataclass of a mapping: every field in its declared type, every fault that is in it.

    Args:
        key: the dotted path of the mapping, for the faults.
    """
    hints = get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cast("Any", cls)) if field.init}
    faults: list[Fault] = []
    kept: dict[str, Any] = {}
    for name, value in values.items():
        try:
            kept[name] = _field_value(cls, name, value, known=fields, hints=hints)
        except Unfit as unfit:
            faults.append(Fault(key=f"{key}.{name}", message=str(unfit)))
    absent = [name for name, field in fields.items() if name not in kept and _required(field)]
    faults += [Fault(key=f"{key}.{name}", message="must be given.") for name in absent if name not in values]
    if absent:
        return Built(value=None, faults=faults)
    try:
        return Built(value=cls(**kept), faults=faults)
    except ValueError as refused:
        faults.append(
            Fault(
                key=_first_named(str(refused), key=key, names=fields),
                message=str(refused),
            )
        )
        return Built(value=None, faults=faults)


def build_part(node: Any, *, key: str, adapter: str | None = None) -> Built[Any]:
    """Make the part that a node's `_target_` names.

    Args:
        adapter: dotted path of the part that takes in targets which are no parts themselves; None = there is none.
    """
    if not isinstance(node, Mapping) or TARGET not in node:
        return _unbuilt(key, f"is {_shown(node)}, not an option. Choose one: {key}=<option>")
    target = node[TARGET]
    arguments = {name: value for name, value in node.items() if name != TARGET}
    if target == MISSING:
        return _unbuilt(f"{key}.{TARGET}", "must be given: the dotted path of a part.")
    try:
        found = locate(str(target))
    except NotFound as missing:
        return _unbuilt(f"{key}.{TARGET}", f"{target} cannot be imported: {missing}")
    if isinstance(found, type) and dataclasses.is_dataclass(found):
        return typed(found, arguments, key=key)
    if adapter is None or not callable(found):
        return _unbuilt(
            f"{key}.{TARGET}",
            f"{target} is not a part: it must be a dataclass. See runner/protocols/.",
        )
    return _adapted(locate(adapter), target=str(target), found=found, arguments=arguments, key=key)


def _adapted(adapter: Any, *, target: str, found: Any, arguments: Mapping[str, Any], key: str) -> Built[Any]:
    """A part around a class that knows nothing of the runner; the adapter's own fields are split off first."""
    own = {field.name for field in dataclasses.fields(adapter)} - {
        "target",
        "arguments",
    }
    foreign = {name: value for name, value in arguments.items() if name not in own}
    unset = [name for name, value in foreign.items() if value == MISSING]
    faults = [Fault(key=f"{key}.{name}", message="must be given.") for name in unset]
    # The first positional argument (parameters, or the optimizer) is the adapter's to give.
    for name, message in misfits(found, target, positional=1, named=foreign):
        faults.append(
            Fault(
                key=f"{key}.{name}",
                message=f"{message} Delete it: ~{key}.{name}" if name in foreign else message,
            )
        )
    if faults:
        return Built(value=None, faults=faults)
    kept = {name: value for name, value in arguments.items() if name in own}
    return typed(adapter, {"target": target, "arguments": foreign, **kept}, key=key)


def _field_value(cls: type, name: str, value: Any, *, known: Iterable[str], hints: Mapping[str, Any]) -> Any:
    if name not in known:
        choices = f"{did_you_mean(name, known)} It has: {listed(known)}."
        raise Unfit(f"{cls.__name__} has no such key.{choices}")
    if isinstance(value, str) and value == MISSING:
        raise Unfit("must be given.")
    hint = hints[name]
    try:
        return convert(hint, value)
    except Unfit as unfit:
        raise Unfit(f"{_shown(value)} {unfit}") from None


def _unbuilt(key: str, message: str) -> Built[Any]:
    return Built(value=None, faults=[Fault(key=key, message=message)])


def _required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _first_named(message: str, *, key: str, names: Iterable[str]) -> str:
    """The key of the field with which a part's own rule begins its message, else of the part."""
    return next((f"{key}.{name}" for name in names if message.startswith(f"{name}=")), key)


def _shown(value: Any) -> str:
    text = "null" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)
    return text if len(text) < 80 else f"{text[:77]}…"
