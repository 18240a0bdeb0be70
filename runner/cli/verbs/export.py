"""Write the weights of a run as safetensors.

Takes the model's weights from a committed checkpoint. transformers' from_pretrained reads them if the model is one of
its own. Needs no device, starts no process, and runs no code that the run names. The last line on stdout is the
directory that was written.
"""

import argparse
import re
from pathlib import Path

USAGE = "DIR [options]"
SIZE = re.compile(r"(\d+(?:\.\d+)?) ?([KMGT]?)(i?)B?", re.IGNORECASE)
DTYPES = ("float64", "float32", "bfloat16", "float16")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The run's directory, which checkpoint, and how it is written."""
    add = parser.add_argument
    add("dir", metavar="DIR", type=Path, help="directory of the run")
    add("--step", metavar="N", type=int, help="export the checkpoint of this step instead of the newest")
    add("--model", metavar="NAME", help="which one, of a run with several models")
    add("--dtype", choices=DTYPES, help="convert floating-point tensors to this type")
    size = "split the weights into files of at most this size: 5GB, 500MB, 2GiB (default: 5GB)"
    add("--max-shard-size", metavar="SIZE", type=_bytes, default="5GB", help=size)
    add("--no-config", action="store_true", help="leave out config.json and generation_config.json")
    add("--out", metavar="PATH", type=Path, help="directory to create (default: DIR/export/step_N)")


def main(arguments: argparse.Namespace) -> int:
    """Write the weights and print where they are."""
    from runner.cli.export import export

    return export(arguments)


def _bytes(text: str) -> int:
    """A size in bytes: KB, MB, GB, TB are powers of 1000, KiB, MiB, GiB, TiB of 1024."""
    found = SIZE.fullmatch(text.strip())
    factor = 1 if not found or not found[2] else (1024 if found[3] else 1000) ** (" KMGT".index(found[2].upper()))
    size = int(float(found[1]) * factor) if found else 0
    if size < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size such as 5GB, 500MB or 2GiB.")
    return size
