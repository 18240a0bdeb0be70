"""Shell completion: of verbs and recipes here, of groups, options and keys by Hydra.

`eval "$(runner -sc install=bash)"` installs it. The shell then calls `runner -sc query=bash` with its line in
COMP_LINE.
"""

import os

from runner.cli.arguments import bare_words
from runner.cli.verb import load_verb, verb_names
from runner.composition.find_recipe import find, needs_network
from runner.composition.recipe import Recipe, recipe_files, search_path, shipped_root
from runner.errors import SpecError

__all__ = ["main"]


def main(argv: list[str]) -> int:
    """Print the completions that the shell asks for, or the script that installs completion."""
    request = [word for word in argv if word.partition("=")[0] in ("install", "uninstall", "query")]
    if not request or not request[0].startswith("query="):
        return _hydra(Recipe(shipped_root() / "conf" / "base.yaml"), request)
    words = os.environ.get("COMP_LINE", "").split()  # the shell has no other way to hand over its line
    complete = words if os.environ.get("COMP_LINE", " ").endswith(" ") else words[:-1]
    if len(complete) < 2:
        print(" ".join(verb_names()))
        return 0
    if complete[1] not in verb_names() or not load_verb(complete[1]).USAGE.startswith("RECIPE"):
        return 0
    bare = bare_words([word for word in complete[2:] if not word.startswith("-")])  # the recipe, and perhaps a key
    try:
        recipe = bare[0] if bare else ""
        if needs_network(recipe):
            return 0
        found = find(recipe)
    except SpecError:
        print(" ".join(recipe_files()))
        return 0
    rest = [word for word in words[2:] if word not in bare]
    line = " ".join([words[0], *rest])
    os.environ["COMP_LINE"] = line if len(complete) < len(words) else f"{line} "
    return _hydra(found, request)


def _hydra(recipe: Recipe, request: list[str]) -> int:
    from runner.composition.hydra_main import hydra_main  # completing a verb or a recipe needs no Hydra

    return hydra_main(recipe, ["--shell-completion", *request], directories=search_path(recipe))
