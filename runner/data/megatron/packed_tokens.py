"""Samples of a fixed length, packed from documents of tokens."""

from typing import final

import numpy
import torch
from torch import Tensor

from runner.data.megatron.indexed_tokens import IndexedTokens
from runner.errors import DataError

__all__ = ["PackedTokens"]

SEEDS = 1 << 32
"""As many as NumPy's legacy generator has."""


@final
class PackedTokens:
    """Documents in a shuffled order, one after the other, cut into samples of `sequence_length` + 1 tokens.

    A map-style dataset. The last token of a sample is the first of the next, so that each token but the first is
    predicted once. What remains at the end, fewer tokens than a sample has, is left out. The samples are those that
    megatron-core's GPTDataset has for one epoch of these documents and this seed, before it shuffles them: here, the
    group `order` does.

    Keeps 12 bytes for each document.

    Args:
        sequence_length: tokens that each sample predicts.
        seed: of the order of the documents; None = the order of the file.

    Raises:
        DataError: there are fewer tokens than a sample has, or the seed is out of range.
    """

    def __init__(self, documents: IndexedTokens, *, sequence_length: int, seed: int | None) -> None:
        self.documents = documents
        self.sequence_length = sequence_length
        self._order = numpy.arange(len(documents), dtype=numpy.min_scalar_type(len(documents)))
        if seed is not None:
            if not 0 <= seed < SEEDS:
                raise DataError(f"seed={seed} must be from 0 to {SEEDS - 1}: NumPy shuffles the documents by it.")
            numpy.random.RandomState(seed).shuffle(self._order)  # legacy, as in Megatron: frozen in every numpy
        self._ends = numpy.cumsum(documents.lengths[self._order], dtype=numpy.int64)
        if sequence_length < 1 or self._ends[-1] <= sequence_length:
            raise DataError(
                f"{documents.path} has {self._ends[-1]} tokens in its part {documents.part!r}, from which no sample of "
                f"sequence_length={sequence_length} + 1 tokens can be cut. Use a length from 1 to "
                f"{self._ends[-1] - 1}, or give the part a larger share."
            )

    def __len__(self) -> int:
        return int(self._ends[-1] - 1) // self.sequence_length

    def __getitem__(self, index: int) -> Tensor:
        """The tokens of a sample: [sequence_length + 1], int64."""
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        tokens = numpy.empty(self.sequence_length + 1, dtype=numpy.int64)
        start = index * self.sequence_length
        place = int(numpy.searchsorted(self._ends, start, side="right"))
        start -= int(self._ends[place - 1]) if place else 0
        filled = 0
        while filled < len(tokens):
            document = int(self._order[place])
            end = min(int(self.documents.lengths[document]), start + len(tokens) - filled)
            tokens[filled : filled + end - start] = self.documents.read(document, start, end)
            place, start, filled = place + 1, 0, filled + end - start
        return torch.from_numpy(tokens)
