"""List the recipes that can be given by name.

These are the files in recipes/ of the working directory, those that come with the runner, and those of installed
packages that announce them. A line has the name, the recipe's own version, where it comes from, and the first line of
its header.
"""

import argparse
from pathlib import Path

from runner.cli.recipe_header import first_comment
from runner.composition.find_recipe import visible_recipes

USAGE = ""
NO_VERSION = "-"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """None."""


def main(arguments: argparse.Namespace) -> int:
    """Print a line for every recipe."""
    lines = [(one.name, *_version_and_header(one.path), one.origin) for one in visible_recipes()]
    widths = [max((len(line[column]) for line in lines), default=0) for column in (0, 1, 3)]
    for name, version, header, origin in lines:
        print(f"{name:<{widths[0]}}  {version:<{widths[1]}}  {origin:<{widths[2]}}  {header}".rstrip())
    if not lines:
        print(f"There are no recipes in {Path.cwd() / 'recipes'}.")
    return 0


def _version_and_header(path: Path) -> tuple[str, str]:
    if b"version" not in path.read_bytes():
        return NO_VERSION, first_comment(path)
    from runner.composition.yaml_file import FileFault, parse  # YAML, only where there is a version to read

    try:
        version = parse(path).content.get("version")
    except FileFault as wrong:
        return NO_VERSION, f"cannot be read: {wrong}"
    return NO_VERSION if version is None else str(version), first_comment(path)
