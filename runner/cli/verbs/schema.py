"""Write JSON Schemas of recipes and option files, for editors.

An editor with yaml-language-server completes and checks with them the files in recipes/ and conf/ of the working
directory. They describe its options and the shipped ones, so run this again when an option or a hook changes. The parts
that options name are imported; hooks are only read.
"""

import argparse
import os
from pathlib import Path

USAGE = "[options]"
DIRECTORY = Path(".runner", "schema")
HINT = """\
An editor with yaml-language-server finds a schema in one of two ways:

for one file, by a line at its beginning, with the path from the file's own directory:
  # yaml-language-server: $schema={from_recipes}

for all files, by a setting; in VS Code (extension redhat.vscode-yaml), .vscode/settings.json:
{settings}"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Where they are written."""
    where = f"directory to write to (default: {DIRECTORY})"
    parser.add_argument("-o", "--output", metavar="DIR", type=Path, default=DIRECTORY, help=where)


def main(arguments: argparse.Namespace) -> int:
    """Write the schemas, and print how an editor finds them.

    Raises:
        SpecError: a recipe or option cannot be read, or the directory cannot be written.
    """
    import json

    from runner.schema.files import RECIPE, editor_settings, schemas, write
    from runner.schema.project import read_project

    project = read_project()
    found = schemas(project)
    write(found, arguments.output)
    relative = Path(os.path.relpath(arguments.output)).as_posix()
    print(f"{relative}: {len(found)} schemas are written: {RECIPE}, <group>.json and <group>/<option>.json\n")
    settings = json.dumps(editor_settings(project, relative), indent=2)
    from_recipes = Path(os.path.relpath(arguments.output / RECIPE, "recipes")).as_posix()
    print(HINT.format(from_recipes=from_recipes, settings=settings))
    return 0
