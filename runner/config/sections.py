"""Dataclasses inside the dataclass of a part: a nested section of its YAML, or keys that several options share.

A field whose type is a dataclass is a nested section; `T | None` lets it be null:

    section: Section = Section()                    section: {key: value}
    sections: Mapping[str, Section] = …             sections: {name: {key: value}}

A flattened field holds the same value, but its keys stand among the part's own, as serde's `flatten` has it:

    retention: Retention = flattened(Retention)     keep_last: 3
"""

import dataclasses
import functools
import types
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, TypeVar, Union, get_args, get_origin, get_type_hints

from runner.config.files import JsonFile

__all__ = [
    "Entry",
    "default_values",
    "entries",
    "field_values",
    "flattened",
    "is_flattened",
    "is_required",
    "key_names",
    "leaf_names",
]

FLATTENED = "runner.flattened"
T = TypeVar("T")


class Entry(NamedTuple):
    """A field as the YAML of its dataclass shows it."""

    field: dataclasses.Field[Any]
    hint: Any
    """Its type."""
    section: type[Any] | None
    """The dataclass that its value is built of; None = the field holds a plain value."""
    sections: type[Any] | None
    """The dataclass of each value, if the field is a mapping of names to sections."""
    flattened: Mapping[str, Any] | None
    """For a flattened field, the defaults that replace those of its section; None = the field is a key of its own."""


def flattened(section: type[T], **defaults: Any) -> T:
    """Declare a field whose keys stand at its part's own level.

    Args:
        section: the field's type, a frozen dataclass.
        defaults: values that replace the section's own defaults in this part.
    """
    factory = functools.partial(section, **defaults)
    return dataclasses.field(default_factory=factory, metadata={FLATTENED: defaults})


def entries(cls: type[Any]) -> list[Entry]:
    """The fields that a dataclass is built of, in order.

    Raises:
        TypeError: two fields have one key, or a flattened field is no dataclass.
    """
    hints = get_type_hints(cls)
    found = [_entry(field, hints[field.name]) for field in dataclasses.fields(cls) if field.init]
    names = [name for entry in found for name in _names(entry)]
    repeated = {name for name in names if names.count(name) > 1}
    if repeated:
        raise TypeError(f"{cls.__name__} has two fields for the key {', '.join(sorted(repeated))}. Rename one of them.")
    return found


def key_names(cls: type[Any]) -> list[str]:
    """The keys that stand at a dataclass's own level in YAML, in order."""
    return [name for entry in entries(cls) for name in _names(entry)]


def leaf_names(cls: type[Any]) -> list[str]:
    """The keys of all plain values of a dataclass, in order; those of a nested section are dotted."""
    found: list[str] = []
    for entry in entries(cls):
        inner = [] if entry.section is None else leaf_names(entry.section)
        prefix = f"{entry.field.name}." if entry.flattened is None else ""
        found += [f"{prefix}{name}" for name in inner] or [entry.field.name]
    return found


def default_values(field: dataclasses.Field[Any]) -> Mapping[str, Any]:
    """The fields of the dataclass that is a field's default; empty if there is no default, or it is null."""
    if field.default_factory is not dataclasses.MISSING:
        return field_values(field.default_factory())
    return {} if is_required(field) or field.default is None else field_values(field.default)


def field_values(instance: Any) -> dict[str, Any]:
    """What a dataclass was built of."""
    return {field.name: vars(instance)[field.name] for field in dataclasses.fields(instance) if field.init}


def is_required(field: dataclasses.Field[Any]) -> bool:
    """Whether a field has no default."""
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def is_flattened(field: dataclasses.Field[Any]) -> bool:
    """Whether the keys of a field's dataclass stand at the level of the field itself."""
    return FLATTENED in field.metadata


def _entry(field: dataclasses.Field[Any], hint: Any) -> Entry:
    section, defaults = _section_of(hint), field.metadata.get(FLATTENED)
    if defaults is not None and section is None:
        raise TypeError(f"{field.name} is flattened, but its type {hint} is not a dataclass.")
    return Entry(field, hint, section, _section_of_values(hint), defaults)


def _section_of_values(hint: Any) -> type[Any] | None:
    """The dataclass in a type Mapping[str, T]."""
    inner = get_args(hint) if get_origin(hint) is Mapping else ()
    return inner[1] if inner and isinstance(inner[1], type) and dataclasses.is_dataclass(inner[1]) else None


def _section_of(hint: Any) -> type[Any] | None:
    """The dataclass in a type T or T | None."""
    is_union = get_origin(hint) in (Union, types.UnionType)
    choices = [choice for choice in get_args(hint) if choice is not type(None)] if is_union else [hint]
    found = choices[0]
    is_section = len(choices) == 1 and isinstance(found, type) and dataclasses.is_dataclass(found)
    return found if is_section and found is not JsonFile else None


def _names(entry: Entry) -> Iterator[str]:
    if entry.flattened is None:
        yield entry.field.name
    else:
        assert entry.section is not None
        yield from key_names(entry.section)
