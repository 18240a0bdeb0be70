"""A host copy of what is to be written, so that training can go on while it is."""

import mmap
import sys
from collections.abc import Iterable, Sequence
from typing import final

import torch
from torch import Tensor

from runner.checkpoint.memory import DTYPES
from runner.checkpoint.writer import Piece, size_of

ALIGNMENT = 64  # bytes: a cache line, and a multiple of every element


@final
class Staging:
    """Memory for one copy, kept from save to save: fresh memory costs several times what copying into it does."""

    def __init__(self) -> None:
        self._memory = torch.empty(0, dtype=torch.uint8)

    def copy(self, pieces: Sequence[Piece], tensors: Iterable[Tensor]) -> list[Tensor]:
        """Copy tensors to the host; valid until the next call.

        Args:
            pieces: their types and shapes.
        """
        starts, end = [], 0
        for piece in pieces:
            starts.append(end)
            end += -(-size_of(piece) // ALIGNMENT) * ALIGNMENT
        if end > self._memory.numel():
            self._memory = _fresh(end)
        copies = []
        for piece, start, tensor in zip(pieces, starts, tensors, strict=True):
            room = self._memory[start : start + size_of(piece)].view(DTYPES[piece.dtype]).view(piece.shape)
            copies.append(room.copy_(tensor.detach()))
        return copies


def _fresh(size: int) -> Tensor:
    """Memory in large pages where there are such: 512 times fewer faults on the first touch."""
    memory = mmap.mmap(-1, size)
    if sys.platform == "linux":
        memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=torch.uint8)
