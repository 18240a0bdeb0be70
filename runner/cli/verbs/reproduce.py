"""Train a run again from its record, and say how far the two agree.

The new run has the declaration of the old one and a directory of its own. Both are compared: every value of
metrics.jsonl and every tensor of the newest checkpoint that both have. The last line on stdout says how far they agree.
A secret that the record does not hold is given again: KEY=VALUE.
Exit code: 0 they are equal, bit for bit; 13 they are not; others as those of train (docs/exit_codes.md).
"""

import argparse
from pathlib import Path

from runner.cli.arguments import add_run

USAGE = "DIR [options]"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The run's directory, and the new one."""
    add_run(parser)
    add = parser.add_argument
    add("--dir", metavar="NEW", type=Path, dest="new_dir", help="directory of the new run (default: as train makes it)")
    add("--changed-hooks", action="store_true", help="train although the source of a hook is not what it was")
    add("--trust", action="store_true", help="accept a run that did not begin on this account")


def main(arguments: argparse.Namespace) -> int:
    """Train, compare, and print the result."""
    from runner.cli.reproduce import reproduce

    return reproduce(arguments)
