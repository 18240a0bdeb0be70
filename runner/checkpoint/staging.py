"""A host copy of what is to be written, so that training can go on while it is."""

from collections.abc import Iterable, Sequence
from typing import final

import torch
from torch import Tensor

from runner.checkpoint.memory import DTYPES
from runner.checkpoint.writer import Piece, size_of

ALIGNMENT = 64  # bytes: a cache line, and a multiple of every element


@final
class Staging:
    """Memory for one copy, kept from save to save: fresh memory costs several times what copying into it does.

    Pages of 2 MiB (madvise) made the first copy slower, not faster: 0.4 s to 2.0 s for 0.5 GB, against 0.2 s.
    """

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
            self._memory = torch.empty(end, dtype=torch.uint8)
        copies = []
        for piece, start, tensor in zip(pieces, starts, tensors, strict=True):
            room = self._memory[start : start + size_of(piece)].view(DTYPES[piece.dtype]).view(piece.shape)
            copies.append(room.copy_(tensor.detach()))
        return copies
