"""List the recipes that can be given by name.

These are the files in recipes/ of the working directory, and those that come with the runner.
"""

import argparse
from pathlib import Path

from runner.composition.recipe import recipe_files

USAGE = ""
FOR_PROGRAMS = ("# @package", "# yaml-language-server:")
"""Comments that Hydra and editors read."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """None."""


def main(arguments: argparse.Namespace) -> int:
    """Print the name and the first comment line of every recipe."""
    files = recipe_files()
    width = max((len(name) for name in files), default=0)
    for name, path in files.items():
        print(f"{name:<{width}}  {_first_comment(path)}".rstrip())
    if not files:
        print(f"There are no recipes in {Path.cwd() / 'recipes'}.")
    return 0


def _first_comment(path: Path) -> str:
    lines = (line.strip() for line in path.read_text().splitlines())
    comments = (line.lstrip("# ") for line in lines if line.startswith("#") and not line.startswith(FOR_PROGRAMS))
    return next((comment for comment in comments if comment), "")
