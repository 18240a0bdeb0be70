"""Write a recipe, its hooks and its options as a package that pip installs.

Where the package is installed, pkg://PACKAGE/NAME names the recipe, and `runner recipes` lists it. Options and bases
that come with the runner are not copied. The last line on stdout is the package's directory.
"""

import argparse
from pathlib import Path

from runner.cli.arguments import add_recipe, recipe_words
from runner.cli.recipe_header import first_comment
from runner.composition.find_recipe import find
from runner.composition.recipe import is_own
from runner.errors import Fault, SpecError

USAGE = "RECIPE [options]"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The recipe, the directory and the package's name."""
    add_recipe(parser)
    add = parser.add_argument
    add("--output", metavar="DIR", type=Path, help="directory to create (default: the package's name, with hyphens)")
    add("--name", metavar="PACKAGE", help="the package's import name (default: NAME_recipes)")


def main(arguments: argparse.Namespace) -> int:
    """Write the directory and print what is in it."""
    from runner.composition.compose import compose
    from runner.sharing.pack import pack_of, write_pack

    name, overrides = recipe_words(arguments, prog="runner pack")
    if overrides:
        rule = "a package holds the recipe's file as it is. Write the value into a recipe of its own: defaults: [BASE]"
        raise SpecError(Fault(key=overrides[0].partition("=")[0], message=rule, origin="the command line"))
    recipe = find(name)
    composed = compose(recipe, [])
    spec = composed.read(rules=()) if is_own(recipe) else composed.read_without_imports()
    pack = pack_of(composed, spec, package=arguments.name, summary=first_comment(recipe.path).rstrip("."))
    directory = (arguments.output or Path(pack.distribution)).absolute()
    write_pack(pack, directory)
    for path in sorted(pack.files):
        print(path)
    given = "" if spec.version else ", since the recipe has none"
    print(f"version {pack.version}{given}; needs {', '.join(pack.dependencies)}")
    print(directory)
    return 0
