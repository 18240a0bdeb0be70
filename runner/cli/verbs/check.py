"""Report everything that is wrong with a recipe, without running it.

Prints what would run if nothing is wrong. Starts no process and touches no device. Exit code: 0 nothing is wrong, 2
something is.
"""

import argparse
from collections.abc import Iterator
from typing import TYPE_CHECKING

from runner.cli.arguments import add_recipe, recipe_words
from runner.cli.help import OVERRIDES
from runner.compose.recipe import find

if TYPE_CHECKING:
    from runner.config.run_spec import RunSpec

USAGE = "RECIPE [OVERRIDE ...]"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The recipe and its overrides."""
    parser.epilog = OVERRIDES
    add_recipe(parser)


def main(arguments: argparse.Namespace) -> int:
    """Print a summary.

    Raises:
        SpecError: with every fault at once.
    """
    from runner.compose.compose import compose

    recipe, overrides = recipe_words(arguments, prog="runner check")
    composed = compose(find(recipe), overrides)
    print(_summary(composed.read(), choices=composed.stored().source.choices))
    return 0


def _summary(spec: "RunSpec", *, choices: dict[str, object]) -> str:
    from runner.config.read import GROUPS

    batch, world_size = spec.batch, spec.world_size
    ranks = batch.items // (batch.micro_items * batch.accumulate)
    hooks = (("model", spec.model), ("data", spec.data), ("loss", spec.loss))
    cut = f"{batch.micro_items} micro_items × {batch.accumulate} accumulate × {ranks}"
    if batch.auto:
        cut = f"as many micro_items as fit, at most {batch.micro_items} × {ranks}"
    lines = [
        f"{spec.name}: {spec.run.steps} steps from seed {spec.run.seed}",
        f"  batch        {batch.items} items = {cut} data ranks ({world_size} processes)",
        *(f"  {key:<12} {hook.target}" for key, hook in hooks),
        *(f"  {group:<12} {choices.get(group)}" for group in GROUPS),
        f"  tracker      {', '.join(spec.tracker) or 'none'}",
        f"  metric       {', '.join(spec.metric) or 'none'}",
        f"  callback     {', '.join(spec.callback) or 'none'}",
        *(f"  {line}" for line in _plan(spec)),
        "nothing is wrong",
    ]
    return "\n".join(lines)


def _plan(spec: "RunSpec") -> Iterator[str]:
    """What the precision does to the model's layers, if it chooses among them."""
    from runner.model.meta_model import MetaBuildError, build_meta_model

    try:
        yield from spec.precision.plan(lambda: build_meta_model(spec))
    except MetaBuildError as error:
        yield f"layers: the model cannot be built without values ({error}); the run's log will say which are converted"
