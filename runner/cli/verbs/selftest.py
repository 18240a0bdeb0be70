"""Train for a minute in every way that this machine can, and compare the losses.

Groups: strategy (two processes equal one), precision, resume (bit by bit), interchange (a checkpoint of one strategy is
continued by another). Without a group, all of them. Leaves nothing behind.
Exit code: 0 everything works that this machine can run, 1 something does not.
"""

import argparse

USAGE = "[GROUP ...] [options]"
TIMEOUT_S = 60.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What is checked, and how long it may take."""
    parser.add_argument("groups", metavar="GROUP", nargs="*", help="strategy | precision | resume | interchange")
    timeout = f"seconds that one run may take before it is ended and counts as failed (default: {TIMEOUT_S:g})"
    parser.add_argument("--timeout", metavar="S", type=float, default=TIMEOUT_S, help=timeout)


def main(arguments: argparse.Namespace) -> int:
    """Check, print a line for each check, and return whether all is well."""
    from runner.selftest.selftest import selftest

    return 0 if selftest(arguments.groups, timeout_s=arguments.timeout) else 1
