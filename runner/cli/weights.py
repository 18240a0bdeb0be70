"""Arguments of the verbs that use the weights of a run: which of them."""

import argparse
from pathlib import Path

__all__ = ["add_weights"]


def add_weights(parser: argparse.ArgumentParser) -> None:
    """Declare which weights are used; and --trust, since the run's code is run."""
    add = parser.add_argument
    add("--step", metavar="N", type=int, help="use the checkpoint of this step instead of the newest")
    add("--best", action="store_true", help="use the checkpoint that is best by checkpoint.metric")
    add("--weights", metavar="PATH", type=Path, help="use exported weights: a directory, or a .safetensors file")
    add("--trust", action="store_true", help="accept a run that did not begin on this account, or a stranger's recipe")
