"""Write what a run predicts for each item of a dataset.

The outputs of the predict hook, or else of the loss hook, in the order of the dataset. Started again after it was
killed, the same command goes on where it was. The last line on stdout is the file. With a recipe in place of a run, the
weights are those that the model hook makes.
"""

import argparse
from pathlib import Path

from runner.cli.arguments import add_run_or_recipe
from runner.cli.help import OVERRIDES
from runner.cli.weights import add_weights

USAGE = "DIR|RECIPE [OVERRIDE ...] [options]"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The run's directory or a recipe, overrides, which weights, which dataset and where to."""
    parser.epilog = OVERRIDES
    add_run_or_recipe(parser)
    add = parser.add_argument
    add("--on", metavar="NAME", help="dataset: train, eval, or the name of an evaluation set (default: the only one)")
    formats = ".jsonl, .parquet or .safetensors (default: predictions/step_N/NAME.jsonl in DIR)"
    add("--out", metavar="FILE", type=Path, help=f"file to write, which must not exist; {formats}")
    add_weights(parser)


def main(arguments: argparse.Namespace) -> int:
    """Write the predictions and print where they are."""
    from runner.cli.jobs import predict

    return predict(arguments)
