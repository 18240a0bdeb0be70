"""Evaluate a run, or a model, on the evaluation sets.

The weights are those of the newest committed checkpoint. Everything that a recipe says may be overridden: strategy,
hardware, metrics, data. The metrics go to stdout; the last line is the file that holds them, too. With a recipe in
place of a run, the weights are exported ones (--weights), or those that the model hook makes.
"""

import argparse

from runner.cli.arguments import add_run_or_recipe
from runner.cli.help import OVERRIDES
from runner.cli.weights import add_weights

USAGE = "DIR|RECIPE [OVERRIDE ...] [options]"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The run's directory or a recipe, overrides, and which weights."""
    parser.epilog = OVERRIDES
    add_run_or_recipe(parser)
    add_weights(parser)


def main(arguments: argparse.Namespace) -> int:
    """Print the metrics."""
    from runner.cli.jobs import evaluate

    return evaluate(arguments)
