"""Write a small project that trains at once.

Makes a recipe, three hooks, a hardware option for this machine, a test and a README, in DIR (default: the working
directory), which must be new or empty. Asks for what is not given; with --yes, takes the defaults instead.
"""

import argparse
from pathlib import Path

USAGE = "[DIR] [options]"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The directory, and the answers."""
    add = parser.add_argument
    add("dir", metavar="DIR", nargs="?", type=Path, default=Path(), help="directory of the project; new or empty")
    add("--yes", action="store_true", help="do not ask: take the default of what is not given")
    add("--name", help="name of the recipe and of its hooks' module (default: that of the directory)")
    add("--processes", metavar="N", type=int, help="processes on this machine, one for each device (default: 1)")
    add("--strategy", metavar="OPTION", help="strategy: single | ddp | fsdp | … (default: single, or ddp for several)")
    add("--precision", metavar="OPTION", help="precision: fp32 | bf16 | … (default: fp32)")
    add("--tracker", metavar="OPTION", help="tracker: none | tensorboard | wandb (default: none)")


def main(arguments: argparse.Namespace) -> int:
    """Ask, write the project, and say what to type next."""
    from runner.cli.init import init

    return init(arguments)
