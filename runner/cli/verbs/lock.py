"""Write a lock file: every value of a recipe, and digests and versions of what it came from.

The file stands beside the recipe as NAME.lock.yaml, or in the working directory if the recipe comes with the runner,
with a package or from a repository. `runner train NAME.lock.yaml` trains exactly these values, and refuses where a
file, a module, a version or the platform differs. Secrets are not written: they are taken from the environment again.
The last line on stdout is the file.
"""

import argparse
from pathlib import Path

from runner.cli.arguments import add_recipe, recipe_words
from runner.cli.help import OVERRIDES
from runner.composition.find_recipe import find
from runner.composition.recipe import is_own
from runner.config.counted import counted

USAGE = "RECIPE [OVERRIDE ...] [options]"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The recipe, its overrides, and the file."""
    parser.epilog = OVERRIDES
    add_recipe(parser)
    output = "write this file instead of NAME.lock.yaml; its name ends in .lock.yaml"
    parser.add_argument("--output", metavar="FILE", type=Path, help=output)


def main(arguments: argparse.Namespace) -> int:
    """Write the file and print where it is."""
    from runner.composition.compose import compose
    from runner.sharing.lock import lock_path, write_lock

    name, overrides = recipe_words(arguments, prog="runner lock")
    recipe = find(name)
    path = lock_path(recipe, arguments.output)
    composed = compose(recipe, overrides)
    spec = composed.read(rules=()) if is_own(recipe) else composed.read_without_imports()
    lock = write_lock(path, composed, spec)
    held = [
        counted(len(lock.files), "config file", "config files"),
        counted(len(lock.modules), "module", "modules"),
        counted(len(lock.packages), "version", "versions"),
        lock.platform,
    ]
    print(", ".join(held))
    print(path)
    return 0
