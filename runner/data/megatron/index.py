"""The index of a file of tokens, in the format of Megatron-LM (megatron/core/datasets/indexed_dataset.py, version 1).

Tokens are two files. PREFIX.bin has the tokens and nothing else. PREFIX.idx says where each sequence of them stands,
in little-endian numbers:

    9 bytes     MMIDIDX and two zeros
    uint64      the version, 1
    uint8       the code of the type of a token
    uint64      S, the number of sequences
    uint64      D + 1, one more than the number of documents
    S × int32   how many tokens each sequence has
    S × int64   at which byte of PREFIX.bin it begins
    D+1 × int64 with which sequence each document begins; the last number is S

Most writers make one sequence of each document. Of several, the tokens stand one after the other.
"""

import struct
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy

from runner.errors import DataError

__all__ = ["TYPES", "Index", "index_bytes", "read_index"]

Array = numpy.ndarray[Any, numpy.dtype[Any]]

HEADER = struct.Struct("<9sQBQQ")
MAGIC = b"MMIDIDX\x00\x00"
OLDER = b"TNTIDX\x00\x00"
"""How the files of fairseq and of the first Megatron-LM begin."""
VERSION = 1
TYPES = {1: "u1", 2: "i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}
"""Of tokens, by code. 6 and 7 are floating point."""
LENGTH, OFFSET = numpy.dtype("<i4"), numpy.dtype("<i8")
AT_ONCE = 1 << 20
"""Sequences that are checked at a time, so that a check takes no memory to speak of."""
UNFINISHED = "Its writing was cut short, or it is damaged: write both files again."


class Index(NamedTuple):
    """Where the documents stand."""

    dtype: numpy.dtype[Any]
    """Of a token."""
    lengths: Array
    """Tokens of each document: [documents]. Memory-mapped if each document is one sequence."""
    offsets: Array
    """Byte at which each document begins: [documents]. Memory-mapped if each document is one sequence."""


def read_index(path: Path, *, bin_bytes: int) -> Index:
    """Map an index, and check it against the size of the file with the tokens.

    Args:
        path: PREFIX.idx.
        bin_bytes: the size of PREFIX.bin.

    Raises:
        DataError: the two are not such files, not whole, or not of one build.
        OSError: the index cannot be read.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        dtype, sequences, boundaries = _header(file.read(HEADER.size), path)
    expected = HEADER.size + sequences * (LENGTH.itemsize + OFFSET.itemsize) + boundaries * OFFSET.itemsize
    if size == expected + sequences and sequences:
        raise DataError(
            f"{path} has a byte for each sequence after its documents: the modes of a multimodal dataset, which are "
            "not read. Write the text without them."
        )
    if size != expected:
        rule = f"has {size} bytes, but an index of {sequences} sequences and {boundaries - 1} documents has {expected}."
        raise DataError(f"{path} {rule} {UNFINISHED}")
    if not sequences or boundaries < 2:
        raise DataError(f"{path} has {sequences} sequences and {boundaries - 1} documents. It needs one at least.")
    mapped = numpy.memmap(path, mode="r").view(numpy.ndarray)  # a plain array is faster to index than a memmap
    found = numpy.split(
        mapped[HEADER.size :], [sequences * LENGTH.itemsize, sequences * (LENGTH.itemsize + OFFSET.itemsize)]
    )
    index = Index(dtype, found[0].view(LENGTH), found[1].view(OFFSET))
    _check_sequences(index, path, bin_bytes=bin_bytes)
    starts = found[2].view(OFFSET)
    return index if _one_by_one(starts, sequences, path) else _of_documents(index, starts, path)


def index_bytes(dtype: numpy.dtype[Any], lengths: "array[int]") -> Iterator[bytes]:
    """The parts of an index of documents that stand one after the other, each one sequence.

    Args:
        lengths: tokens of each document, as 32-bit numbers.
    """
    code = next(code for code, name in TYPES.items() if numpy.dtype(name) == dtype)
    yield HEADER.pack(MAGIC, VERSION, code, len(lengths), len(lengths) + 1)
    of_each = numpy.asarray(lengths, dtype=LENGTH)
    yield of_each.tobytes()
    ends = numpy.cumsum(of_each, dtype=OFFSET) * dtype.itemsize
    yield (ends - of_each.astype(OFFSET) * dtype.itemsize).tobytes()
    yield numpy.arange(len(lengths) + 1, dtype=OFFSET).tobytes()


def _header(first: bytes, path: Path) -> tuple[numpy.dtype[Any], int, int]:
    """The type of tokens, the number of sequences, and one more than the number of documents."""
    if first.startswith(OLDER):
        raise DataError(f"{path} is of the format before this one (TNTIDX). Write the texts again: runner tokenize.")
    if len(first) < HEADER.size or not first.startswith(MAGIC):
        raise DataError(f"{path} does not begin with MMIDIDX, as an index of Megatron's format does. {UNFINISHED}")
    _, version, code, sequences, boundaries = HEADER.unpack(first)
    if version != VERSION:
        raise DataError(
            f"{path} is of version {version} of Megatron's format. Version {VERSION} is the one that is read."
        )
    if code not in TYPES:
        known = ", ".join(f"{number} ({numpy.dtype(name)})" for number, name in TYPES.items())
        raise DataError(f"{path} has tokens of type {code}, but tokens are whole numbers, of type {known}.")
    return numpy.dtype(TYPES[code]), sequences, boundaries


def _check_sequences(index: Index, path: Path, *, bin_bytes: int) -> None:
    """Raise DataError if sequences stand where there are no tokens, or end before the tokens do."""
    itemsize, last = index.dtype.itemsize, 0
    for lengths, offsets in _chunks(index.lengths, index.offsets):
        if lengths.min() < 0 or offsets.min() < 0 or (offsets % itemsize).any():
            raise DataError(f"{path} has a sequence of negative length, or one that begins amid a token. {UNFINISHED}")
        last = max(last, int((offsets + lengths.astype(OFFSET) * itemsize).max()))
    if last != bin_bytes:
        raise DataError(
            f"{path.with_suffix('.bin')} has {bin_bytes} bytes, but the sequences of {path.name} end at byte {last}. "
            "One of the two was cut short, or they are not of one build: write both again."
        )
    if not last:
        raise DataError(f"{path} has documents without any token. At least one is needed.")


def _one_by_one(starts: Array, sequences: int, path: Path) -> bool:
    """Whether each document is one sequence.

    Raises:
        DataError: they are not divided into documents.
    """
    steps = [
        (int(step.min()), int(step.max()))
        for one, following in _chunks(starts[:-1], starts[1:])
        for step in [following - one]
    ]
    if starts[0] != 0 or starts[-1] != sequences or min(steps)[0] < 0:
        rule = f"must begin with 0, never fall, and end with the number of sequences, {sequences}"
        raise DataError(f"{path}: the numbers of the first sequences of its documents {rule}. {UNFINISHED}")
    return set(steps) == {(1, 1)}


def _of_documents(index: Index, starts: Array, path: Path) -> Index:
    """The documents, of several sequences or none."""
    lengths = index.lengths.astype(OFFSET)
    follows = numpy.append(index.offsets[1:] == index.offsets[:-1] + lengths[:-1] * index.dtype.itemsize, True)
    follows[starts[1:] - 1] = True  # what ends a document needs no other after it
    if not follows.all():
        rule = "stands elsewhere than after the one before it in its document"
        raise DataError(f"{path}: sequence {int(follows.argmin()) + 1} {rule}. {UNFINISHED}")
    ends = numpy.append(0, numpy.cumsum(lengths))
    first = numpy.minimum(starts[:-1], len(lengths) - 1)  # an empty document at the end has none
    return Index(index.dtype, numpy.diff(ends[starts]), index.offsets[first])


def _chunks(*arrays: Array) -> Iterator[tuple[Array, ...]]:
    """Equal parts of arrays of one length."""
    parts = -(-len(arrays[0]) // AT_ONCE)
    return zip(*(numpy.array_split(one, parts) for one in arrays), strict=True)
