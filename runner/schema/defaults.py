"""The schema of a defaults list: the files and options that there are."""

import re
from collections.abc import Iterable, Mapping, Sequence

from runner.config.read import GROUPS, HOOKS, MANY_GROUPS, SECTIONS
from runner.config.read_models import SEVERAL
from runner.schema.values import STANDS_FOR_A_VALUE, Schema

__all__ = ["chooses", "defaults_schema", "includes", "option_names"]

PREFIX = "^(override |optional )*/?"
NESTED = f"{PREFIX}[^/ ]+/.+$"
"""A group inside another one, whose options are not listed."""
OTHER_FILE = r"^optional |[/@$]"
"""A name that is not one of a file beside this one: group/option, a package, an interpolation."""
OF_THE_RUN = f"{PREFIX}({'|'.join((*GROUPS, *MANY_GROUPS, *HOOKS, *SEVERAL, *SECTIONS))})$"
"""The groups of which an option sets one section; one of another group, such as experiment, may choose options."""


def option_names(groups: Mapping[str, Sequence[str]]) -> dict[str, Schema]:
    """The definitions that schemas of defaults lists refer to.

    Args:
        groups: the options of each group.
    """
    return {_reference(group): _options(group, names) for group, names in groups.items()}


def defaults_schema(files: Iterable[str], groups: Iterable[str]) -> Schema:
    """The schema of a defaults list.

    Args:
        files: names of what may be included, besides options of groups.
    """
    options: dict[str, Schema] = {group: {"$ref": f"#/definitions/{_reference(group)}"} for group in groups}
    entry: Schema = {
        "minProperties": 1,
        "maxProperties": 1,
        "properties": {f"{word}{group}": one for group, one in options.items() for word in ("", "override ")},
        "patternProperties": {
            **{f"{PREFIX}{re.escape(group)}(@.*)?$": one for group, one in options.items()},
            NESTED: {},
        },
        "additionalProperties": False,
    }
    name: Schema = {"anyOf": [{"enum": ["_self_", *files]}, {"type": "string", "pattern": OTHER_FILE}]}
    return {
        "description": "What is composed, in order: files, and options of groups. _self_ is this file's own content.",
        "type": "array",
        "items": {"type": ["string", "object"], "if": {"type": "object"}, "then": entry, "else": name},
    }


def chooses(group: str, options: Sequence[str] | None = None) -> Schema:
    """The schema of a file whose defaults list names one of these options of a group; None = any of them."""
    names = {"enum": list(options)} if options is not None else {}
    entry = {"type": "object", "minProperties": 1, "patternProperties": {f"{PREFIX}{re.escape(group)}$": names}}
    return _contains({**entry, "additionalProperties": False})


def includes(files: Sequence[str]) -> Schema:
    """The schema of a file whose defaults list names one of these files, and nothing else that could choose options."""
    other_file = {"type": "string", "not": {"enum": ["_self_", *files]}}
    other_group = {"type": "object", "not": {"propertyNames": {"pattern": OF_THE_RUN}}}
    return {"allOf": [_contains({"enum": list(files)}), {"not": _contains({"anyOf": [other_file, other_group]})}]}


def _contains(entry: Schema) -> Schema:
    return {"required": ["defaults"], "properties": {"defaults": {"type": "array", "contains": entry}}}


def _reference(group: str) -> str:
    return f"options.{group}"


def _options(group: str, names: Sequence[str]) -> Schema:
    reference: Schema = {"type": "string", "pattern": STANDS_FOR_A_VALUE}
    one: Schema = {"anyOf": [{"enum": list(names)}, reference]}
    if group not in MANY_GROUPS:
        return one
    return {"anyOf": [{"enum": [*names, None]}, {**reference, "type": ["array", "string"], "items": one}]}
