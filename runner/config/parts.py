"""Builds typed objects from nodes of the composed configuration: a part by its `_target_`, a section by its class."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from runner.config.convert import ConversionError, convert
from runner.config.imports import NotFound, locate
from runner.config.nearest import did_you_mean, listed
from runner.config.sections import Entry, default_values, entries, field_values, is_required, key_names, leaf_names
from runner.config.signatures import binding_errors
from runner.errors import Fault

__all__ = ["MISSING", "TARGET", "BuildResult", "build_part", "build_section", "build_sections", "imports_any", "shown"]

MISSING = "???"
"""How Hydra writes a value that must still be given."""
TARGET = "_target_"

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class BuildResult(Generic[T]):
    """An object built from a node, and the faults of that node."""

    value: T | None
    """Has defaults in place of faulty values; None = it could not be built."""
    faults: list[Fault]


def build_section(
    cls: type[T], values: Mapping[str, Any], *, key: str, defaults: Mapping[str, Any] | None = None
) -> BuildResult[T]:
    """Build a dataclass from a mapping, converting each value to the type of its field, and collect every fault.

    Args:
        key: the dotted path of the mapping, for the faults.
        defaults: values that replace the defaults of the fields.
    """
    arguments = dict(defaults or {})
    faults = list(_unknown_keys(cls, values, key=key))
    complete = True
    for entry in entries(cls):
        name = entry.field.name
        required = is_required(entry.field) and name not in arguments
        section = _build_inner(entry, values, key=key, defaults=arguments)
        if section is not None:
            arguments[name] = section.value
            faults += section.faults
            complete = complete and section.value is not None
        elif name in values:
            try:
                arguments[name] = _convert(entry.hint, values[name])
            except ConversionError as error:
                faults.append(Fault(key=f"{key}.{name}", message=str(error)))
                complete = complete and not required
        elif required:
            faults.append(Fault(key=f"{key}.{name}", message="must be given."))
            complete = False
    if not complete:
        return BuildResult(value=None, faults=faults)
    try:
        return BuildResult(value=cls(**arguments), faults=faults)
    except ValueError as error:
        faults.append(Fault(key=_key_named_by(str(error), cls, key=key), message=str(error)))
        return BuildResult(value=None, faults=faults)


def _build_inner(
    entry: Entry, values: Mapping[str, Any], *, key: str, defaults: Mapping[str, Any]
) -> BuildResult[Any] | None:
    """The dataclass in a field; None if the field is a plain value or is not given as a mapping."""
    name = entry.field.name
    if entry.sections is not None:
        node = values.get(name)
        return build_sections(entry.sections, node, key=f"{key}.{name}") if isinstance(node, Mapping) else None
    if entry.section is None:
        return None
    if entry.flattened is not None:
        own = {inner: values[inner] for inner in key_names(entry.section) if inner in values}
        given = field_values(defaults[name]) if name in defaults else entry.flattened
        return build_section(entry.section, own, key=key, defaults=given)
    node = values.get(name)
    if not isinstance(node, Mapping):
        return None
    given = field_values(defaults[name]) if name in defaults else default_values(entry.field)
    return build_section(entry.section, node, key=f"{key}.{name}", defaults=given)


def build_sections(cls: type[Any], node: Any, *, key: str) -> BuildResult[Any]:
    """Build a dataclass for each name of a mapping of mappings."""
    if not isinstance(node, Mapping):
        return BuildResult(value=None, faults=[Fault(key=key, message=f"{shown(node)} must be a mapping of names.")])
    faults, built = [], {}
    for name, inner in node.items():
        if not isinstance(inner, Mapping):
            faults.append(Fault(key=f"{key}.{name}", message=f"{shown(inner)} must be a mapping: {key}.{name}.<key>=…"))
            continue
        result = build_section(cls, inner, key=f"{key}.{name}")
        faults += result.faults
        built[str(name)] = result.value
    return BuildResult(value=None if faults else built, faults=faults)


def imports_any(_target: str) -> bool:
    """Let every target be imported."""
    return True


def build_part(
    node: Any, *, key: str, adapter: str | None = None, imports: Callable[[str], bool] = imports_any
) -> BuildResult[Any]:
    """Build the part that a node's `_target_` names.

    Args:
        adapter: dotted path of the part that wraps a target which is not a part itself; None = such targets are faults.
        imports: whether a target may be imported; one that may not is not built, without a fault.
    """
    if not isinstance(node, Mapping) or TARGET not in node:
        return _not_built(key, f"is {shown(node)}, not an option. Choose one: {key}=<option>")
    target = node[TARGET]
    arguments = {name: value for name, value in node.items() if name != TARGET}
    if target == MISSING:
        return _not_built(f"{key}.{TARGET}", "must be given: the dotted path of a part.")
    if not imports(str(target)):
        return BuildResult(value=None, faults=[])
    try:
        found = locate(str(target))
    except NotFound as error:
        return _not_built(f"{key}.{TARGET}", f"{target} cannot be imported: {error}")
    if isinstance(found, type) and dataclasses.is_dataclass(found):
        return build_section(found, arguments, key=key)
    if adapter is None or not callable(found):
        return _not_built(
            f"{key}.{TARGET}",
            f"{target} is not a part: it must be a dataclass. See runner/protocols/.",
        )
    return _build_adapter(locate(adapter), target=str(target), found=found, arguments=arguments, key=key)


def _build_adapter(
    adapter: Any, *, target: str, found: Any, arguments: Mapping[str, Any], key: str
) -> BuildResult[Any]:
    """A part around a class that is none itself: the adapter takes its own keys, the class all others."""
    own = set(key_names(adapter)) - {"target", "arguments"}
    foreign = {name: value for name, value in arguments.items() if name not in own}
    missing = [name for name, value in foreign.items() if value == MISSING]
    faults = [Fault(key=f"{key}.{name}", message="must be given.") for name in missing]
    # What the adapter passes itself goes before them: the parameters, or the optimizer. Some know only when they check.
    positional = adapter.positional
    for name, message in (
        () if positional is None else binding_errors(found, target, positional=positional, named=foreign)
    ):
        way_out = f" Delete it: ~{key}.{name}" if name in foreign else ""
        faults.append(Fault(key=f"{key}.{name}", message=message + way_out))
    if faults:
        return BuildResult(value=None, faults=faults)
    values = {name: value for name, value in arguments.items() if name in own}
    return build_section(adapter, {"target": target, "arguments": foreign, **values}, key=key)


def _unknown_keys(cls: type[Any], values: Mapping[str, Any], *, key: str) -> Iterator[Fault]:
    known = key_names(cls)
    for name in map(str, values):
        if name not in known:
            rule = f"{cls.__name__} has no such key.{did_you_mean(name, known)} It has: {listed(known)}."
            yield Fault(key=f"{key}.{name}", message=rule)


def _convert(hint: Any, value: Any) -> Any:
    if isinstance(value, str) and value == MISSING:
        raise ConversionError("must be given.")
    try:
        return convert(hint, value)
    except ConversionError as error:
        raise ConversionError(f"{shown(value)} {error}") from None


def _not_built(key: str, message: str) -> BuildResult[Any]:
    return BuildResult(value=None, faults=[Fault(key=key, message=message)])


def _key_named_by(message: str, cls: type[Any], *, key: str) -> str:
    """The key of the field with which the message of a rule begins, `field=value …`; else the whole node's."""
    return next((f"{key}.{name}" for name in leaf_names(cls) if message.startswith(f"{name}=")), key)


def shown(value: Any) -> str:
    """A value as YAML writes it, cut to a length that a message can hold."""
    text = "null" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)
    return text if len(text) < 80 else f"{text[:77]}…"
