"""What is known of each key of a section or part before it has a value: type, default, rule and meaning."""

import types
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass
from enum import Enum
from typing import Any, Literal, Union, get_args, get_origin

from runner.config.convert import describe_type
from runner.config.docstrings import docstrings
from runner.config.parts import build_section
from runner.config.sections import Entry, entries

__all__ = ["Key", "choices_of", "keys_of", "union_of"]

PROBED = (-1, 0)
"""Numbers that a class is asked about, to learn its rule for a field."""


@dataclass(frozen=True, kw_only=True)
class Key:
    """A key of a section or part, as its dataclass declares it."""

    name: str
    """Dotted if it is in a nested section."""
    hint: Any
    """Its type."""
    default: Any
    """dataclasses.MISSING = it must be given."""
    meaning: str
    """The docstring of the field; may be empty."""
    rule: str
    """What the class says of a number that is out of range; may be empty."""

    @property
    def type(self) -> str:
        """The type in words."""
        return describe_type(self.hint)


def keys_of(cls: type[Any]) -> list[Key]:
    """The keys of all plain values of a dataclass, in order."""
    texts = docstrings(cls)
    return [key for entry in entries(cls) for key in _keys(cls, entry, meaning=texts.get(entry.field.name, ""))]


def _keys(cls: type[Any], entry: Entry, *, meaning: str) -> Iterator[Key]:
    name, field = entry.field.name, entry.field
    if entry.section is None:
        default = field.default if field.default_factory is MISSING else field.default_factory()
        yield Key(name=name, hint=entry.hint, default=default, meaning=meaning, rule=_rule(cls, name, entry.hint))
        return
    replaced = entry.flattened or {}
    for key in keys_of(entry.section):
        dotted = key.name if entry.flattened is not None else f"{name}.{key.name}"
        default = replaced.get(key.name, key.default)
        yield Key(name=dotted, hint=key.hint, default=default, meaning=key.meaning, rule=key.rule)


def _rule(cls: type[Any], name: str, hint: Any) -> str:
    """The message of a class about the first number that it refuses for a field; empty if it takes all of them."""
    if not {int, float} & set(union_of(hint)):
        return ""
    for number in PROBED:
        told = [fault.message for fault in build_section(cls, {name: number}, key="").faults]
        for start in (f"{name}={number} ", f"{name}={float(number)} "):
            found = next((message.removeprefix(start) for message in told if message.startswith(start)), None)
            if found is not None:
                return found.rstrip(".")
    return ""


def union_of(hint: Any) -> tuple[Any, ...]:
    """The types of a union; a type that is none, alone."""
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def choices_of(hint: Any) -> Mapping[str, str]:
    """The values of a closed choice, each with its docstring; empty if the type is none."""
    found: dict[str, str] = {}
    for kind in union_of(hint):
        if get_origin(kind) is Literal:
            found.update(dict.fromkeys(map(str, get_args(kind)), ""))
        elif isinstance(kind, type) and issubclass(kind, Enum):
            texts = docstrings(kind)
            found.update({str(member.value): texts.get(member.name, "") for member in kind})
    return found
