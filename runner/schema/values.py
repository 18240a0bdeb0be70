"""The schema of a single value: what `config/convert.py` accepts for its type, or text that stands for a value.

A value may be of several JSON types, rather than match one of several schemas: an editor then names what is expected.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Any, get_args, get_origin

from runner.config.convert import describe_type
from runner.config.fields import Key, choices_of, union_of
from runner.config.files import JsonFile

__all__ = ["STANDS_FOR_A_VALUE", "Schema", "mapping", "value_schema"]

Schema = dict[str, Any]
STANDS_FOR_A_VALUE = r"\$\{|^\?\?\?$"
"""Text with an interpolation, or ??? for a value that must still be given."""
BOOLEAN = r"^([Tt][Rr][Uu][Ee]|[Ff][Aa][Ll][Ss][Ee]|[Yy]es|YES|[Nn]o|NO|[Oo]n|ON|[Oo]ff|OFF)$"
"""Hydra reads YAML 1.1, for which yes is true; an editor that reads YAML 1.2 takes it for text."""
WHOLE = r"^[-+]?[0-9][0-9_]*(\.0*|(\.[0-9]*)?[eE]\+?[0-9]+)?$"
NUMBER = r"^[-+]?([0-9][0-9_]*\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?$|^[-+]?\.?([Ii]nf|INF|[Nn]a[Nn]|NAN)$"
SCALARS: Mapping[Any, tuple[Sequence[str], str]] = {
    type(None): (["null"], ""),
    bool: (["boolean", "string"], BOOLEAN),
    int: (["integer", "string"], WHOLE),
    float: (["number", "string"], NUMBER),
    str: (["string", "number"], "."),
    Path: (["string", "number"], "."),
    JsonFile: (["string"], "."),
}
"""The JSON types of a value, and the text that is taken for one."""
PYTHON_TYPES: Mapping[str, tuple[type, ...]] = {
    "null": (type(None),),
    "boolean": (bool,),
    "integer": (int,),
    "number": (int, float),
    "string": (str,),
    "array": (list,),
    "object": (dict,),
}


def value_schema(key: Key, *, default: Any, least: int | None = None, positive: bool = False) -> Schema:
    """The schema of one key.

    Args:
        default: what an editor inserts.
        least: the smallest number.
        positive: whether numbers must be above 0.
    """
    schema = {**_typed(key.hint), "description": _description(key)}
    schema |= {} if least is None else {"minimum": least}
    schema |= {"exclusiveMinimum": 0} if positive else {}
    plain = _plain(default)
    if plain is None and type(None) not in union_of(key.hint):
        return schema
    if "type" in schema:
        schema["type"] = sorted(schema["type"], key=lambda name: not _is_of(plain, name))
    return {**schema, "default": plain}


def mapping(
    properties: Mapping[str, Schema], *, closed: bool = True, null: bool = False, description: str = ""
) -> Schema:
    """The schema of a section: a mapping of these keys, or text that stands for one.

    Args:
        closed: whether other keys are refused.
        null: whether the section may be null.
    """
    schema = {
        "type": ["object", "string", *(["null"] if null else [])],
        "pattern": STANDS_FOR_A_VALUE,
        "patternErrorMessage": "must be a mapping",
        "properties": dict(properties),
        **({"description": description} if description else {}),
    }
    return {**schema, "additionalProperties": False} if closed else schema


def _plain(value: Any) -> Any:
    """A default as JSON writes it; None if JSON cannot."""
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    return value if isinstance(value, str | int | float | bool) else None


def _is_of(value: Any, json_type: str) -> bool:
    """Whether a value is of a JSON type. yaml-language-server 2.0 fails unless that of the default comes first."""
    return isinstance(value, PYTHON_TYPES[json_type]) and (json_type == "boolean" or not isinstance(value, bool))


def _typed(hint: Any) -> Schema:
    if hint is Any:
        return {}
    choices = list(choices_of(hint))
    kinds = [kind for kind in union_of(hint) if not choices_of(kind)]
    texts = {STANDS_FOR_A_VALUE, *(SCALARS[kind][1] for kind in kinds if kind in SCALARS)} - {""}
    types = [name for kind in kinds for name in _json_types(kind)]
    types += ["null"] if "none" in choices else []  # a choice is compared as text
    merged = {name: rule for kind in kinds if kind not in SCALARS for name, rule in _inside(kind).items()}
    schema = {
        "type": list(dict.fromkeys([*types, "string"])),
        "pattern": "|".join(sorted(texts)),
        "patternErrorMessage": f"must be {describe_type(hint)}",
        **merged,
    }
    if "." in texts:  # any text will do
        schema = {name: rule for name, rule in schema.items() if not name.startswith("pattern")}
    return {"anyOf": [{"enum": choices}, schema]} if choices else schema


def _json_types(kind: Any) -> Iterable[str]:
    if kind in SCALARS:
        return SCALARS[kind][0]
    origin = get_origin(kind) or kind
    is_mapping = isinstance(origin, type) and issubclass(origin, Mapping)
    return ["object"] if is_mapping or dataclasses.is_dataclass(origin) else ["array"]


def _inside(kind: Any) -> Schema:
    """The schema of the items of a list or the values of a mapping."""
    inner = get_args(kind)
    if list(_json_types(kind)) == ["object"]:
        return {"additionalProperties": _typed(inner[1])} if inner else {}
    if get_origin(kind) is tuple and inner[-1] is not Ellipsis:
        return {"items": [_typed(item) for item in inner], "minItems": len(inner), "maxItems": len(inner)}
    return {"items": _typed(inner[0])} if inner else {}


def _description(key: Key) -> str:
    choices = [f"{choice}: {meaning}" for choice, meaning in choices_of(key.hint).items() if meaning]
    rule = f"It {key.rule}." if key.rule.startswith("must ") else ""
    return "\n".join(line for line in (key.meaning, rule, *choices) if line)
