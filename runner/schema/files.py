"""Writes the schemas of a project, and says how an editor finds them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from runner import durable
from runner.errors import Fault, SpecError
from runner.schema.defaults import option_names
from runner.schema.options import group_file, option_file
from runner.schema.project import Project
from runner.schema.recipe import recipe_schema
from runner.schema.values import Schema

__all__ = ["RECIPE", "editor_settings", "schemas", "write"]

DRAFT = "http://json-schema.org/draft-07/schema#"
"""The draft that yaml-language-server supports best."""
RECIPE = "recipe.json"


def schemas(project: Project) -> dict[str, Schema]:
    """Each schema by the name of its file: recipe.json, <group>.json and <group>/<option>.json."""
    recipe = recipe_schema(project)
    found = {RECIPE: recipe}
    for group, options in project.groups.items():
        found[f"{group}.json"] = group_file(group, project, recipe)
        found |= {f"{group}/{option.name}.json": option_file(option, project, recipe) for option in options}
    names = option_names({group: [option.name for option in options] for group, options in project.groups.items()})
    return {name: _whole(name, schema, names) for name, schema in found.items()}


def write(found: Mapping[str, Schema], directory: Path) -> None:
    """Write the schemas into a directory, which is created.

    Raises:
        SpecError: it cannot be written.
    """
    try:
        for name, schema in found.items():
            path = directory / name
            path.parent.mkdir(parents=True, exist_ok=True)
            durable.replace(path, json.dumps(schema, indent=2, ensure_ascii=False) + "\n", flush=False)
    except OSError as error:
        rule = f"{directory} cannot be written: {error.strerror}. Choose another directory."
        raise SpecError(Fault(key="--output", message=rule)) from None


def editor_settings(project: Project, directory: str) -> dict[str, Any]:
    """Settings of yaml-language-server: the files that each schema is for.

    Args:
        directory: of the schemas, relative to the working directory.
    """
    files = {f"{directory}/{group}.json": [f"conf/{group}/*.yaml"] for group in project.groups}
    return {
        "yaml.schemas": {f"{directory}/{RECIPE}": ["recipes/**/*.yaml"], **files},
        "yaml.disableDefaultProperties": True,  # a recipe holds differences: a section is inserted without defaults
    }


def _whole(name: str, schema: Schema, definitions: Mapping[str, Schema]) -> Schema:
    """A schema with its head, and what it refers to."""
    head = {"$schema": DRAFT, "title": f"runner: {name.removesuffix('.json')}"}
    return {**head, **schema, "definitions": {**definitions, **schema.get("definitions", {})}}
