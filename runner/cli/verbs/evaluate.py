"""Evaluate a run on its evaluation sets.

The weights are those of the newest committed checkpoint. Everything that a recipe says may be overridden: strategy,
hardware, metrics, data. The metrics go to stdout; the last line is the file that holds them, too.
"""

import argparse

from runner.cli.arguments import add_run
from runner.cli.help import OVERRIDES
from runner.cli.weights import add_weights

USAGE = "DIR [OVERRIDE ...] [options]"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The run's directory, overrides, and which weights."""
    parser.epilog = OVERRIDES
    add_run(parser)
    add_weights(parser)


def main(arguments: argparse.Namespace) -> int:
    """Evaluate a run."""
    from runner.cli.jobs import evaluate

    return evaluate(arguments)
