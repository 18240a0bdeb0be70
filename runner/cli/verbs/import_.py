"""Turn the configuration of another library, or a launcher's command line, into overrides.

Reads the YAML of `accelerate config`, a DeepSpeed JSON, or a command line of torchrun, accelerate launch or deepspeed,
as data: nothing of it is executed. Prints the overrides, one a line, on stdout; and on stderr what became of each key.
Exit code: 0, also if some keys have no counterpart; 2 if keys are unknown or their values wrong.

    runner import accelerate.yaml
    runner train digits $(runner import accelerate.yaml)
    runner import -- torchrun --nproc_per_node 2 train.py
"""

import argparse
from pathlib import Path

from runner.cli.verb import FOREIGN

USAGE = "FILE | -- COMMAND ..."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The file, or the command line after --."""
    what = "a configuration of Accelerate or DeepSpeed; or, after --, the command line of a launcher"
    parser.add_argument("file", metavar="FILE", nargs="?", type=Path, help=what)
    output = "write a recipe with these settings instead of printing overrides"
    parser.add_argument("--output", metavar="RECIPE.yaml", type=Path, help=output)
    parser.set_defaults(**{FOREIGN: []})


def main(arguments: argparse.Namespace) -> int:
    """Print overrides, or write a recipe and print its path."""
    from runner.cli.migrate import migrate

    return migrate(arguments)
