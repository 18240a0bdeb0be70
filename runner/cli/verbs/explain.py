"""Say where each value comes from.

For every value of the composed declaration, or those of one key or section: the file and line or the override that set
it, what that replaced, its type and range, and what it means; for a group, its option and the others. Runs nothing, and
imports no hook. Parts of a recipe outside the working directory are not imported (docs/security.md).
"""

import argparse

from runner.cli.arguments import add_recipe, key_words
from runner.cli.help import OVERRIDES

USAGE = "RECIPE [KEY] [OVERRIDE ...] [options]"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The recipe, a key, overrides, and the form of what is printed."""
    parser.epilog = f"KEY is the dotted key of a value or section: optimizer.lr, run, strategy\n\n{OVERRIDES}"
    add_recipe(parser)
    parser.add_argument("--json", action="store_true", help="print a JSON list with an object for each value")


def main(arguments: argparse.Namespace) -> int:
    """Print the explanations.

    Raises:
        SpecError: the recipe cannot be composed with these overrides, or there is no such key.
    """
    from runner.cli.explain import print_explanations, to_json
    from runner.composition.compose import compose
    from runner.composition.explain import explain
    from runner.composition.find_recipe import find

    name, key, overrides = key_words(arguments, prog="runner explain")
    explanations = explain(compose(find(name), overrides), key)
    if arguments.json:
        print(to_json(explanations))
    else:
        print_explanations(explanations)
    return 0
