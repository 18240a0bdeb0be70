"""What `tokenize` does: lines become texts, texts become tokens, tokens become files."""

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy

from runner.data.megatron.tokenizers import Tokenizer, tokenizer_named
from runner.data.megatron.write import token_type, write_tokens
from runner.errors import DataError, Fault, SpecError

__all__ = ["tokenize"]

CHARACTERS = 1 << 22
"""Of the texts that are made into tokens together."""
PROGRESS_S = 30.0
"""Seconds after which it is said how far it is."""
EMPTY, INSIDE = "empty texts are left out", "documents have the token of an end inside, too"
Tokens = numpy.ndarray[Any, numpy.dtype[Any]]


def tokenize(arguments: argparse.Namespace) -> int:
    """Write the files, and print their prefix.

    Raises:
        SpecError: there is no such tokenizer, or it has no token for the end of a document.
        DataError: a line has no text, or the files cannot be read or written.
    """
    tokenizer = tokenizer_named(arguments.tokenizer)
    end = [] if arguments.no_end else [_end(arguments.end, tokenizer, arguments.tokenizer)]
    dtype = token_type(max([tokenizer.largest, *end]))
    notes: Counter[str] = Counter()
    documents = _documents(_texts(arguments.files, arguments.key), tokenizer, end, notes)
    try:
        written = write_tokens(arguments.out, documents, dtype=dtype)
    except OSError as error:
        raise DataError(f"{error.filename or arguments.out}: {error.strerror}.") from None
    print(f"{written.documents:,} documents, {written.tokens:,} tokens of {dtype}", file=sys.stderr)
    for note, number in notes.items():
        print(f"{number:,} {note}", file=sys.stderr)
    print(arguments.out)
    return 0


def _end(given: int | None, tokenizer: Tokenizer, name: str) -> int:
    """The token that ends each document."""
    found = tokenizer.end if given is None else given
    if found is None:
        rule = f"{name} has no token for the end of a text. Give one, --end ID, or do without: --no-end."
        raise SpecError(Fault(key="--end", message=rule))
    if found < 0:
        raise SpecError(Fault(key="--end", message=f"{found} is no token: they are numbers from 0."))
    return found


def _documents(texts: Iterable[str], tokenizer: Tokenizer, end: Sequence[int], notes: Counter[str]) -> Iterator[Tokens]:
    """The tokens of each text that is not empty, and the end of the document.

    Args:
        end: one token or none.
        notes: counts what a person should know of.
    """
    told, number, num_tokens = time.monotonic(), 0, 0
    for some in _batches(texts):
        for tokens in tokenizer.tokens([text for text in some if text]):
            notes.update([INSIDE] if numpy.isin(end, tokens).any() else [])
            yield numpy.append(tokens, end).astype(numpy.int64) if end else tokens
            number, num_tokens = number + 1, num_tokens + len(tokens) + len(end)
        notes.update([EMPTY] * some.count(""))
        if time.monotonic() - told > PROGRESS_S:
            told = time.monotonic()
            print(f"{number:,} documents, {num_tokens:,} tokens", file=sys.stderr)


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    size = 0
    for text in texts:
        batch.append(text)
        size += len(text)
        if size >= CHARACTERS:
            yield batch
            batch, size = [], 0
    yield batch


def _texts(files: Iterable[Path], key: str) -> Iterator[str]:
    """The texts of all files, line by line.

    Raises:
        DataError: a line is no JSON object, or has no text under the key.
    """
    for path in files:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield _text(line, key, f"{path}:{number}")


def _text(line: bytes, key: str, where: str) -> str:
    try:
        found = json.loads(line)
        text = found[key]
        text.encode()
    except UnicodeError as error:
        raise DataError(f"{where}: {error}. Texts are UTF-8.") from None
    except ValueError as error:
        raise DataError(f"{where} is no JSON: {error}. Each line has one document.") from None
    except (AttributeError, KeyError, TypeError):
        has = f"has {', '.join(found)}" if isinstance(found, dict) else f"is a {type(found).__name__}"
        raise DataError(
            f"{where} {has}, but must be an object with text under {key!r}. Another key: --key NAME"
        ) from None
    return str(text)
