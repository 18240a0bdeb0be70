"""Continue a run from its newest committed checkpoint.

The run keeps its declaration, except for the overrides. A run that another account began is refused until --trust
accepts it: resuming runs the code that its directory names.
"""

import argparse

from runner.cli.arguments import add_run
from runner.cli.help import OVERRIDES

USAGE = "DIR [OVERRIDE ...] [options]"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The run's directory and overrides."""
    parser.epilog = OVERRIDES
    add_run(parser)
    parser.add_argument(
        "--allow",
        metavar="KEY",
        action="append",
        default=[],
        help="let KEY change although it defines the run (model, data, loss, batch.items, run.seed, order, strategy)",
    )
    parser.add_argument(
        "--from",
        metavar="step_N",
        dest="resume_from",
        help="start from this checkpoint instead of the newest; 0 = from step 0, if the checkpoints are gone",
    )
    parser.add_argument("--trust", action="store_true", help="accept a run that did not begin on this account")


def main(arguments: argparse.Namespace) -> int:
    """Continue a run."""
    from runner.cli.resume import resume

    return resume(arguments)
