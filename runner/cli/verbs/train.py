"""Train a recipe, or a run again from its record.

The last line on stdout is the run's directory.
Exit code: 0 done, 2 invalid declaration, 130 interrupted, 1 or 3 to 10 failed (docs/exit_codes.md).
"""

import argparse
from pathlib import Path

from runner.cli.arguments import add_recipe
from runner.cli.help import OVERRIDES, group_options

USAGE = "RECIPE [OVERRIDE ...] [options]"
INFO = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")
KEYS = "All keys are described in conf/base.yaml and conf/<group>/<option>.yaml; --cfg job prints them."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The recipe, its overrides, and Hydra's flags."""
    parser.epilog = f"{OVERRIDES}\n\n{group_options()}\n\n{KEYS}"
    add_recipe(parser)
    add = parser.add_argument
    add("-r", "--run", action="store_true", help=argparse.SUPPRESS)  # Hydra's word for the default
    add("-m", "--multirun", action="store_true", help="sweep: key=a,b  key=range(1,5)  key=choice(a,b)  key=glob(*)")
    add("-c", "--cfg", choices=["job", "hydra", "all"], help="print the configuration instead of running it")
    add("-p", "--package", metavar="KEY", help="with --cfg: print only this part")
    add("--resolve", action="store_true", help="with --cfg: resolve interpolations")
    info = f"print how the configuration is composed: {' | '.join(INFO)}"
    add("-i", "--info", metavar="WHAT", nargs="?", const="all", choices=INFO, help=info)
    add("-cd", "--config-dir", metavar="DIR", action="append", default=[], type=Path, help="search DIR for groups, too")
    add("-sc", "--shell-completion", metavar="install=SHELL", help="print what installs completion: bash | zsh | fish")
    run = "train a new run with the declaration of the run in DIR, and overrides; without a recipe"
    add("--from", metavar="DIR", dest="record", type=Path, help=run)
    add(
        "--trust",
        action="store_true",
        help="accept a recipe from a repository or from outside the working directory, or a stranger's run",
    )
    trial = "go the whole way in a few steps: train, evaluate, save, resume; then remove what that made"
    add("--try", dest="try_out", action="store_true", help=trial)
    add("--hydra-help", action="store_true", help="print Hydra's own help")


def main(arguments: argparse.Namespace) -> int:
    """Train, sweep, or print what Hydra's flags ask for."""
    from runner.cli.train import train

    return train(arguments)
