"""The schemas of option files: of each option, and of a group, for files that are not among its options yet."""

import inspect
from collections.abc import Mapping

from runner.config.hooks import OPTIONAL, POSITIONAL
from runner.config.imports import locate
from runner.config.parts import TARGET
from runner.config.read import GROUPS, MANY_GROUPS, SECTIONS
from runner.config.read_models import SEVERAL
from runner.schema.defaults import defaults_schema
from runner.schema.project import Option, Project
from runner.schema.sections import (
    foreign_properties,
    hook_schema,
    names_target,
    part_properties,
    section_schema,
    target_schema,
)
from runner.schema.values import Schema, mapping

__all__ = ["group_file", "option_file", "option_node", "section_node"]

NAMES_A_PART: Schema = {"anyOf": [{"required": [TARGET]}, {"required": ["defaults"]}]}
"""An option file has a target of its own, or that of an option which it includes."""


def option_node(option: Option, *, more: Mapping[str, Schema] | None = None) -> Schema:
    """The schema of a group's node for one option. Another target than the option's may have any keys.

    Args:
        more: further keys.
    """
    foreign = {TARGET: target_schema(), **(more or {}), **_foreign(option.section)}
    if option.part is None:
        return mapping(foreign, closed=False)
    return {
        **mapping({}, closed=False, description=inspect.getdoc(option.part) or ""),
        "if": {"properties": {TARGET: {"const": option.target}}},
        "then": _own(option, more or {}),
        "else": {"properties": foreign},
    }


def section_node(section: str, project: Project) -> Schema:
    """The schema of a section or hook."""
    if section in SECTIONS:
        return section_schema(section, SECTIONS[section])
    if section in SEVERAL:
        each = section_schema(f"{section}.*", SEVERAL[section])
        return {**mapping({}, closed=False), "additionalProperties": each}
    positional, optional = POSITIONAL[section], section in OPTIONAL
    return hook_schema(project.hooks[section], project.roots, positional=positional, optional=optional)


def option_file(option: Option, project: Project, recipe: Schema) -> Schema:
    """The schema of the file of an option.

    Args:
        recipe: the schema of recipes, for an option that may set whatever a recipe may.
    """
    if option.section in GROUPS or option.section in MANY_GROUPS:
        return {**option_node(option, more=_defaults(option.group, project)), **NAMES_A_PART, "type": "object"}
    return _file(option.package, option.group, project, recipe)


def group_file(group: str, project: Project, recipe: Schema) -> Schema:
    """The schema of any file in the folder of a group."""
    options = project.groups[group]
    if group not in GROUPS and group not in MANY_GROUPS:
        packages = {option.package for option in options}
        return _file(packages.pop() if len(packages) == 1 else group, group, project, recipe)
    more = _defaults(group, project)
    parts = {option.target: option for option in reversed(options) if option.part is not None and option.target}
    conditions = [
        {"if": names_target(target), "then": _own(option, more)} for target, option in parts.items() if target
    ]
    node = mapping({TARGET: target_schema(sorted(filter(None, parts))), **more}, closed=False)
    return {**node, "allOf": conditions, **NAMES_A_PART, "type": "object"}


def _own(option: Option, more: Mapping[str, Schema]) -> Schema:
    """The keys of an option that is a part."""
    assert option.part is not None
    target = target_schema([] if option.target is None else [option.target])
    return {
        "properties": {TARGET: target, **more, **part_properties(option.part, option.content)},
        "additionalProperties": False,
    }


def _foreign(group: str) -> dict[str, Schema]:
    """The keys of a class that is no part: those of the adapter around it, beside its own."""
    adapter = {**GROUPS, **MANY_GROUPS}.get(group)
    return foreign_properties(locate(adapter)) if adapter is not None else {}


def _defaults(group: str, project: Project) -> dict[str, Schema]:
    names = [option.name for option in project.groups[group]]
    return {"defaults": defaults_schema(names, project.groups)}


def _file(package: str, group: str, project: Project, recipe: Schema) -> Schema:
    """The schema of an option file of a group that is none of parts."""
    if not package:
        return recipe
    more = _defaults(group, project)
    if package not in (*SECTIONS, *SEVERAL, *POSITIONAL):
        return {"type": "object", "properties": more}
    node = section_node(package, project)
    return {**node, "type": "object", "properties": {**node["properties"], **more}}
