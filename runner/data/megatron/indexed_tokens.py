"""Documents of tokens in the files of Megatron-LM."""

import mmap
import re
from pathlib import Path
from typing import Any, final

import numpy
import torch
from torch import Tensor

from runner.data.megatron.index import read_index
from runner.errors import DataError

__all__ = ["PARTS", "IndexedTokens", "shares"]

PARTS = ("train", "valid", "test")
"""Of a split, in the order of its documents."""
AT_ONCE_BYTES = 8192
"""More are asked for in one request, where the system would ask for them page by page."""
SHARE = re.compile(r"\d+(\.\d*)?|\.\d+", re.ASCII)


@final
class IndexedTokens:
    """The documents of PREFIX.bin and PREFIX.idx: a map-style dataset, memory-mapped.

    Ranks and workers of one machine share the memory: it is the system's cache of the files.

    Args:
        path: the prefix, to which .bin and .idx are appended.
        split: shares of train, valid and test, with commas between them: "969,30,1"; those left out at the end are 0.
            A part has neighbours: train the first documents of the file, test the last. None = all documents.
        part: train | valid | test, if there is a split.

    Raises:
        DataError: the files cannot be read, or are damaged; the split is none; or the part has no documents.
    """

    def __init__(self, path: str | Path, *, split: str | None = None, part: str = "train") -> None:
        self.path, self.split, self.part = str(path), split, part
        tokens, index = Path(f"{path}.bin"), Path(f"{path}.idx")
        try:
            found = read_index(index, bin_bytes=tokens.stat().st_size)
            with tokens.open("rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            rule = f"is the prefix of two files, {tokens.name} and {index.name}, which runner tokenize writes."
            raise DataError(f"{error.filename or path}: {error.strerror}. {path} {rule}") from None
        first, last = (0, len(found.lengths)) if split is None else _ends(split, part, len(found.lengths))
        if first == last:
            raise DataError(
                f"{path} has no documents in its part {part!r}: {len(found.lengths)} are split by {split}. Give that "
                "part a larger share, or leave it out."
            )
        self.lengths = found.lengths[first:last]
        """Tokens of each document: [documents]."""
        # Else the system reads on around each document that is not in memory yet: 1.2 MB for one of 2 kB, and 1.4 ms
        # instead of 0.09, as measured on one machine.
        self._map.madvise(mmap.MADV_RANDOM)
        self._tokens = numpy.frombuffer(self._map, found.dtype)
        self._offsets = found.offsets[first:last]

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> Tensor:
        """The tokens of a document: [tokens], int64."""
        return torch.from_numpy(self.read(index, 0, int(self.lengths[index])).astype(numpy.int64))

    def read(self, document: int, start: int, stop: int) -> "numpy.ndarray[Any, numpy.dtype[Any]]":
        """Some tokens of a document, where they stand in memory: [stop - start], of the type of the file."""
        itemsize = self._tokens.itemsize
        first = int(self._offsets[document]) // itemsize + start
        num_bytes = (stop - start) * itemsize
        if num_bytes > AT_ONCE_BYTES:
            page = first * itemsize // mmap.PAGESIZE * mmap.PAGESIZE
            self._map.madvise(mmap.MADV_WILLNEED, page, first * itemsize + num_bytes - page)
        return self._tokens[first : first + stop - start]

    def __reduce__(self) -> Any:
        return _opened, (self.path, self.split, self.part)  # to a worker goes the path, not the tokens


def _opened(path: str, split: str | None, part: str) -> IndexedTokens:
    return IndexedTokens(path, split=split, part=part)


def shares(split: str) -> dict[str, float]:
    """The share of each part, in parts of 1.

    Raises:
        DataError: these are no shares.
    """
    given = [share.strip() for share in split.split(",")]
    if len(given) > len(PARTS) or not all(map(SHARE.fullmatch, given)) or not any(map(float, given)):
        raise DataError(
            f"the split {split!r} must be up to three numbers, the shares of {', '.join(PARTS)}, of which one is above "
            '0: "969,30,1".'
        )
    parts = numpy.array([*map(float, given), 0.0, 0.0][: len(PARTS)])
    return dict(zip(PARTS, (parts / parts.sum()).tolist(), strict=True))


def _ends(split: str, part: str, documents: int) -> tuple[int, int]:
    """The first document of a part, and the first after it: rounded as by Megatron's own split."""
    if part not in PARTS:
        raise DataError(f"there is no part {part!r} of a split: they are {', '.join(PARTS)}.")
    before = 0.0
    for name, share in shares(split).items():
        first, before = before, before + share
        if name == part:
            break
    return round(first * documents), round(before * documents)
