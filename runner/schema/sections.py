"""The schemas of sections, parts and hooks: mappings with the keys of a dataclass or the arguments of a function."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from runner.config.docstrings import docstrings
from runner.config.fields import keys_of, union_of
from runner.config.parts import TARGET
from runner.config.rules import POSITIVE, SMALLEST
from runner.config.sections import entries
from runner.config.source import find_function
from runner.schema.values import Schema, mapping, value_schema

__all__ = ["foreign_properties", "hook_schema", "names_target", "part_properties", "section_schema", "target_schema"]

FOREIGN_KEYS = ("target", "arguments")
"""Fields of an adapter that are no keys of its YAML."""


def section_schema(name: str, cls: type[Any]) -> Schema:
    """The schema of one of the runner's own sections."""
    return mapping(_properties(cls, {}, above=f"{name}."), description=inspect.getdoc(cls) or "")


def part_properties(cls: type[Any], values: Mapping[str, Any]) -> dict[str, Schema]:
    """The keys of a part.

    Args:
        values: what its option file sets, which an editor inserts.
    """
    return _properties(cls, values, above="")


def foreign_properties(adapter: type[Any]) -> dict[str, Schema]:
    """The keys of an adapter, next to which the arguments of the class that it wraps are given."""
    found = _properties(adapter, {}, above="")
    return {name: schema for name, schema in found.items() if name not in FOREIGN_KEYS}


def target_schema(targets: Sequence[str] = (), *, null: bool = False) -> Schema:
    """The schema of `_target_`, with some that an editor offers."""
    schema = {"type": ["null", "string"] if null else "string", "description": "Dotted path of a function or class."}
    return {**schema, "examples": list(targets)} if targets else schema


def hook_schema(targets: Sequence[str], roots: Sequence[str], *, positional: int, optional: bool) -> Schema:
    """The schema of a hook: any function, and those that are found in source with what they take.

    Args:
        targets: hooks that recipes name.
        roots: directories in which their source is looked for.
        positional: how many arguments the runner passes.
        optional: whether `_target_` may be null.
    """
    found = {target: find_function(target, roots, positional=positional) for target in targets}
    conditions = []
    for target, function in found.items():
        if function is not None:
            arguments = {one.name: _argument(one.type, one.default, one.meaning) for one in function.parameters}
            then: Schema = {"description": function.meaning, "properties": {TARGET: {}, **arguments}}
            then |= {} if function.takes_more else {"additionalProperties": False}
            conditions.append({"if": names_target(target), "then": then})
    schema = mapping({TARGET: target_schema(targets, null=optional)}, closed=False)
    return {**schema, "allOf": conditions} if conditions else schema


def names_target(target: str) -> Schema:
    """The schema of a mapping that names this target."""
    return {"type": "object", "required": [TARGET], "properties": {TARGET: {"const": target}}}


def _argument(annotation: str, default: str | None, meaning: str) -> Schema:
    signature = annotation + (f" = {default}" if default is not None else "")
    return {"description": "\n".join(line for line in (meaning, signature.strip(" =")) if line)}


def _properties(cls: type[Any], values: Mapping[str, Any], *, above: str) -> dict[str, Schema]:
    """The keys at a dataclass's own level.

    Args:
        values: replace the defaults.
        above: the section in front of the keys, with a dot at its end; empty inside a part.
    """
    keys, texts = {key.name: key for key in keys_of(cls)}, docstrings(cls)
    found: dict[str, Schema] = {}
    for entry in entries(cls):
        name = entry.field.name
        if entry.flattened is not None and entry.section is not None:
            found |= _properties(entry.section, {**entry.flattened, **values}, above=above)
        elif entry.section is not None:
            inner = values.get(name)
            properties = _properties(
                entry.section, inner if isinstance(inner, Mapping) else {}, above=f"{above}{name}."
            )
            null = type(None) in union_of(entry.hint)
            found[name] = mapping(properties, null=null, description=texts.get(name, ""))
        else:
            key, full = keys[name], f"{above}{name}"
            default = values.get(name, key.default)
            found[name] = value_schema(key, default=default, least=SMALLEST.get(full), positive=full in POSITIVE)
    return found
