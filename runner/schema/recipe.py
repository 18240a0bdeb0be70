"""The schema of recipes. Which keys a group has depends on the option that the defaults list chooses."""

from collections.abc import Iterator

from runner.config.read import GROUPS, HOOKS, MANY_GROUPS, SECTIONS
from runner.config.read_models import SEVERAL
from runner.schema.defaults import chooses, defaults_schema, includes
from runner.schema.options import option_node, section_node
from runner.schema.project import Option, Project
from runner.schema.values import STANDS_FOR_A_VALUE, Schema, mapping

__all__ = ["recipe_schema"]

NAME: Schema = {
    "description": "Name of the run, and part of the name of its directory: text without a slash.",
    "type": ["string", "number"],
    "pattern": rf"^[^/]+$|{STANDS_FOR_A_VALUE}",
    "patternErrorMessage": "must be text without a slash",
}
VERSION: Schema = {
    "description": "Version of the recipe, recorded with each run. Quote it: YAML reads 1.10 as the number 1.1.",
    "type": ["string", "integer", "null"],
}


def recipe_schema(project: Project) -> Schema:
    """The schema of a recipe. Nothing is required: the command line may give it."""
    properties = {
        "defaults": defaults_schema(project.choices, project.groups),
        "name": NAME,
        "version": VERSION,
        **{section: section_node(section, project) for section in (*HOOKS, *SEVERAL, *SECTIONS)},
        **{group: mapping({}, closed=False, description=_described(group, project)) for group in GROUPS},
        **{group: _many(group, project) for group in MANY_GROUPS},
        "hydra": {"description": "Settings of Hydra itself.", "type": "object"},
    }
    return {
        "type": "object",
        "properties": properties,
        "additionalProperties": False,
        "allOf": [condition for group in GROUPS for condition in _conditions(group, project)],
        "definitions": {
            _reference(option): option_node(option)
            for group in (*GROUPS, *MANY_GROUPS)
            for option in project.groups.get(group, ())
        },
    }


def _conditions(group: str, project: Project) -> Iterator[Schema]:
    """For each option, the keys of the group's node in a recipe that chooses it or includes a recipe that does."""
    for option in project.groups.get(group, ()):
        if option.section != group:
            continue  # its content belongs elsewhere
        recipes = [name for name, choices in project.choices.items() if choices.get(group) == option.name]
        inherits: Schema = {"allOf": [{"not": chooses(group)}, includes(recipes)]}
        yield {
            "if": {"anyOf": [chooses(group, [option.name]), *([inherits] if recipes else [])]},
            "then": {"properties": {group: {"$ref": f"#/definitions/{_reference(option)}"}}},
        }


def _many(group: str, project: Project) -> Schema:
    """The node of a group that may have several options, each under its own name."""
    options = [option for option in project.groups.get(group, ()) if option.package == f"{group}.{option.name}"]
    nodes: dict[str, Schema] = {option.name: {"$ref": f"#/definitions/{_reference(option)}"} for option in options}
    return mapping(nodes, closed=False, description=_described(group, project))


def _described(group: str, project: Project) -> str:
    return f"Options: {', '.join(option.name for option in project.groups.get(group, ()))}"


def _reference(option: Option) -> str:
    return f"{option.group}.{option.name}"
