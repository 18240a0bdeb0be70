"""Report everything that is wrong with a recipe, without running it.

Prints what would run if nothing is wrong. Calls no hook and touches no device. Exit code: 0 nothing is wrong, 2
something is. Code of a recipe outside the working directory is imported only with --imports (docs/security.md).
"""

import argparse
from collections.abc import Iterator
from typing import TYPE_CHECKING

from runner.cli.arguments import add_recipe, recipe_words
from runner.cli.help import OVERRIDES
from runner.composition.find_recipe import find
from runner.composition.recipe import is_own
from runner.config.counted import counted

if TYPE_CHECKING:
    from runner.composition.composed import Composed
    from runner.config.run_spec import RunSpec

USAGE = "RECIPE [OVERRIDE ...] [options]"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The recipe and its overrides, and how far the check may go."""
    parser.epilog = OVERRIDES
    add_recipe(parser)
    imports = "import what a recipe outside the working directory names, to check it"
    parser.add_argument("--imports", action="store_true", help=imports)
    build = "import it, and call the model hook on the meta device, to check what parts require of the model"
    parser.add_argument("--build", action="store_true", help=build)


def main(arguments: argparse.Namespace) -> int:
    """Print a summary.

    Raises:
        SpecError: with every fault at once.
    """
    from runner.composition.compose import compose

    name, overrides = recipe_words(arguments, prog="runner check")
    recipe = find(name)
    composed = compose(recipe, overrides)
    if composed.lock is not None:
        from runner.sharing.lock import check_lock

        check_lock(composed)
    if arguments.build:
        lines = [*_summary(composed.read(), composed), *_plan(composed.read(rules=()))]
    elif arguments.imports or is_own(recipe):
        spec = composed.read(rules=())
        lines = [*_summary(spec, composed), *_not_built(spec)]
    else:
        lines = [*_known(composed), *_not_imported(composed)]
    print("\n".join([*lines, *_left_out(composed), "nothing is wrong"]))
    return 0


def _summary(spec: "RunSpec", composed: "Composed") -> list[str]:
    from runner.config.read import GROUPS

    choices = composed.stored().source.choices
    batch, world_size = spec.batch, spec.world_size
    ranks = counted(batch.items // (batch.micro_items * batch.accumulate), "data rank", "data ranks")
    processes = counted(world_size, "process", "processes")
    cut = f"{batch.micro_items} micro_items × {batch.accumulate} accumulate × {ranks}"
    if batch.auto:
        cut = f"as many micro_items as fit, at most {batch.micro_items} × {ranks}"
    return [
        *_title(spec, composed),
        f"  batch        {batch.items} items = {cut} ({processes})",
        *(f"  {key:<12} {hook.target}" for key, hook in spec.hooks.items()),
        *(f"  {group:<12} {choices.get(group)}" for group in GROUPS),
        f"  tracker      {', '.join(spec.tracker) or 'none'}",
        f"  metric       {', '.join(spec.metric) or 'none'}",
        f"  callback     {', '.join(spec.callback) or 'none'}",
    ]


def _title(spec: "RunSpec", composed: "Composed") -> Iterator[str]:
    """What it is, and which one."""
    recipe = composed.recipe
    yield f"{spec.name}: {spec.run.steps} steps from seed {spec.run.seed}"
    if spec.version is not None:
        yield f"  version      {spec.version}"
    if recipe.origin:
        yield f"  recipe       {recipe.reference} ({recipe.origin})"
    if recipe.locks is not None:
        yield f"  locked from  {recipe.locks.reference}, from which nothing differs"


def _not_built(spec: "RunSpec") -> Iterator[str]:
    from runner.model.check import model_is_asked_for

    if model_is_asked_for(spec):
        rule = "what parts require of the model, which `train` checks before launch"
        yield f"  not checked  {rule}. To call the model hook: --build"


def _left_out(composed: "Composed") -> Iterator[str]:
    yield from (f"  left out     {one}" for one in composed.left_out)


def _plan(spec: "RunSpec") -> Iterator[str]:
    """What the precision does to the model's layers, if it chooses among them."""
    from runner.model.check import plan_of

    yield from (f"  {line}" for line in plan_of(spec))


def _known(composed: "Composed") -> Iterator[str]:
    """What is known of a stranger's recipe."""
    from runner.config.parts import TARGET
    from runner.config.read import GROUPS

    spec = composed.read_without_imports()
    yield from _title(spec, composed)
    yield from (f"  {key:<12} {hook.target!r}" for key, hook in spec.hooks.items())
    yield from (f"  {group:<12} {composed.config[group][TARGET]!r}" for group in GROUPS)


def _not_imported(composed: "Composed") -> Iterator[str]:
    rule = "is from a repository" if composed.recipe.source.revision else "is outside the working directory"
    rule += ", so only the runner's own parts of it were imported and checked"
    yield f"  not checked  {composed.recipe.reference} {rule}. To import the others: --imports"
