"""Writes tokens into the files of Megatron-LM."""

import os
from array import array
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import numpy
from numpy.typing import ArrayLike

from runner.data.megatron.index import index_bytes
from runner.durable import sync_directory, unfinished
from runner.errors import DataError

__all__ = ["Written", "token_type", "write_tokens"]

CHOICES = ("u1", "<u2", "<i4")
LONGEST = 2**31 - 1
"""Tokens of a document: the index has 32 bits for them."""


class Written(NamedTuple):
    """What was written."""

    documents: int
    tokens: int


def token_type(largest: int) -> "numpy.dtype[Any]":
    """The smallest type for tokens up to a number: uint8, uint16 or int32.

    Raises:
        DataError: the number has more than 31 bits.
    """
    for name in CHOICES:
        if largest <= numpy.iinfo(name).max:
            return numpy.dtype(name)
    raise DataError(f"token {largest} is more than {LONGEST}, the largest that fits into the files.")


def write_tokens(prefix: Path, documents: Iterable[ArrayLike], *, dtype: "numpy.dtype[Any]") -> Written:
    """Write documents to PREFIX.bin and PREFIX.idx, which get their names once both are on the disk.

    Args:
        documents: the tokens of each: [tokens], whole numbers.
        dtype: of the tokens in the file: see `token_type`.

    Raises:
        DataError: the files exist, there is no token, or one does not fit into the type.
        OSError: the file system reported an error. Nothing is left of what was written.
    """
    tokens, index = Path(f"{prefix}.bin"), Path(f"{prefix}.idx")
    for path in (tokens, index):
        if path.exists():
            raise DataError(f"{path} exists. Give another prefix, or move it away.")
    prefix.parent.mkdir(parents=True, exist_ok=True)
    lengths = array("i")
    with ExitStack() as failed:
        parts = {path: unfinished(path) for path in (tokens, index)}
        for part in parts.values():
            failed.callback(part.unlink, missing_ok=True)
        with parts[tokens].open("xb") as file:
            for number, document in enumerate(documents):
                found = _as_type(numpy.asarray(document), dtype, number)
                file.write(found.tobytes())
                lengths.append(len(found))
            _flush(file)
        if not any(lengths):
            raise DataError(f"there is no token to write to {tokens}: {len(lengths)} documents have none.")
        with parts[index].open("xb") as file:
            file.writelines(index_bytes(dtype, lengths))
            _flush(file)
        for path, part in parts.items():
            part.rename(path)
        sync_directory(prefix.parent)
    return Written(len(lengths), int(numpy.asarray(lengths).sum(dtype=numpy.int64)))


def _as_type(document: "numpy.ndarray[Any, Any]", dtype: "numpy.dtype[Any]", number: int) -> "numpy.ndarray[Any, Any]":
    """The tokens of a document in the type of the file."""
    if document.ndim != 1 or (len(document) and document.dtype.kind not in "iu"):
        found = f"{document.dtype} values of shape {list(document.shape)}"
        raise DataError(f"document {number} must have its tokens in one row of whole numbers: got {found}.")
    limits = numpy.iinfo(dtype)
    if len(document) and not limits.min <= document.min() <= document.max() <= limits.max:
        wrong = document.min() if document.min() < limits.min else document.max()
        raise DataError(f"document {number} has the token {wrong}, which {dtype} does not hold. Use a larger type.")
    if len(document) > LONGEST:
        raise DataError(f"document {number} has {len(document)} tokens, more than {LONGEST}. Divide it.")
    return document.astype(dtype)


def _flush(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())
