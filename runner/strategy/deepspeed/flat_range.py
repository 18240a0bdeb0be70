"""A rank's contiguous range of a flattened tensor, as DeepSpeed partitions it, stored in a checkpoint as boxes.

A checkpoint stores rectangular boxes. A range of elements in row-major order is a few boxes (three for a matrix: the
end of a row, full rows, the beginning of a row), so that each rank writes and reads its own without a gather.
"""

import math
from collections.abc import Callable, Sequence
from typing import final

import torch
from torch import Tensor

from runner.strategy.common.boxed import Box, Boxed


def boxes(shape: Sequence[int], start: int, stop: int) -> list[Box]:
    """The elements [start, stop) of a tensor in row-major order, as boxes in that order: at most 2 × dims − 1."""
    if start >= stop:
        return []
    if not shape:
        return [Box((), (), 0)]
    row = math.prod(shape[1:])
    first, last = start // row, (stop - 1) // row
    if first == last and stop - start < row:
        return _inside(shape, first, start - first * row, stop - first * row, 0)
    found: list[Box] = []
    if start % row:
        found += _inside(shape, first, start % row, row, 0)
        first += 1
    full_rows = stop // row - first
    if full_rows:
        zeros = (0,) * (len(shape) - 1)
        found.append(Box((first, *zeros), (full_rows, *shape[1:]), first * row - start))
    if stop % row:
        found += _inside(shape, last, 0, stop % row, last * row - start)
    return found


def _inside(shape: Sequence[int], row: int, start: int, stop: int, at: int) -> list[Box]:
    return [Box((row, *box.offsets), (1, *box.sizes), at + box.at) for box in boxes(shape[1:], start, stop)]


@final
class FlatRange(Boxed):
    """Has the shape and dtype of the full tensor, but only the elements [start, start + length), possibly none.

    It supports no computation. The unit of a box's `at` is an element.
    """

    @staticmethod
    def __new__(
        cls, elements: Callable[[], Tensor], *, shape: Sequence[int], dtype: torch.dtype, **others: int
    ) -> "FlatRange":
        """Create a tensor of this shape and dtype without storage."""
        tensor: FlatRange = Tensor._make_wrapper_subclass(cls, tuple(shape), dtype=dtype)
        return tensor

    def __init__(
        self,
        elements: Callable[[], Tensor],
        *,
        shape: Sequence[int],
        start: int,
        length: int,
        dtype: torch.dtype,
        is_swapped: bool = False,
    ) -> None:
        """Set which elements the range has and how to get them.

        Args:
            elements: returns the range, [length], when it is read or written; live memory if it is to be loaded into.
            shape: of the full tensor.
            is_swapped: the range is read from a disk for each call of `elements`.
        """
        self._elements = elements
        self.is_swapped = is_swapped
        self._boxes = boxes(shape, start, start + length)

    def _part(self, box: Box) -> Tensor:
        return self._elements().narrow(0, box.at, math.prod(box.sizes)).view(box.sizes)
