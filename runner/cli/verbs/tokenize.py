"""Write texts as tokens, in files of Megatron's format.

Reads JSON Lines, one document a line, and writes PREFIX.bin and PREFIX.idx, from which a recipe packs samples of a
fixed length (docs/data.md). Megatron-LM reads and writes such files, too. The last line on stdout is the prefix.

    runner tokenize texts.jsonl --out tokens/texts
    runner tokenize *.jsonl --out tokens/all --tokenizer path/of/a/tokenizer --key content
"""

import argparse
from pathlib import Path

USAGE = "FILE ... --out PREFIX [options]"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The texts, the tokenizer, and where the tokens are written."""
    add = parser.add_argument
    add("files", metavar="FILE", nargs="+", type=Path, help="texts: a JSON object with a key for its text on each line")
    add("--out", metavar="PREFIX", type=Path, required=True, help="PREFIX.bin and PREFIX.idx are written")
    add("--key", metavar="NAME", default="text", help="the key of the text (default: text)")
    name = "bytes, or the directory or name of a tokenizer that transformers loads (default: bytes)"
    add("--tokenizer", metavar="NAME", default="bytes", help=name)
    end = parser.add_mutually_exclusive_group()
    token = "the token after each document (default: the tokenizer's own end of text; of bytes, 0)"
    end.add_argument("--end", metavar="ID", type=int, help=token)
    end.add_argument("--no-end", action="store_true", help="no token after a document")


def main(arguments: argparse.Namespace) -> int:
    """Write the files and print what they hold."""
    from runner.cli.tokenize import tokenize

    return tokenize(arguments)
