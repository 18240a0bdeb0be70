"""A rank's partition of a tensor that is cut as one flat row of elements, as DeepSpeed cuts: its boxes in a checkpoint.

A checkpoint holds boxes. A range of the elements of a tensor, in row-major order, is a few boxes (three for a matrix:
the end of a row, whole rows, the beginning of a row), so that each rank writes and reads its own and none gathers.
"""

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, final

import torch
from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex
    from torch.distributed.checkpoint.planner import WriteItem


class Box(NamedTuple):
    """A rectangular part of a tensor."""

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    at: int
    """Which element of the range is its first."""


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
    whole = stop // row - first
    if whole:
        zeros = (0,) * (len(shape) - 1)
        found.append(Box((first, *zeros), (whole, *shape[1:]), first * row - start))
    if stop % row:
        found += _inside(shape, last, 0, stop % row, last * row - start)
    return found


def _inside(shape: Sequence[int], row: int, start: int, stop: int, at: int) -> list[Box]:
    return [Box((row, *box.offsets), (1, *box.sizes), at + box.at) for box in boxes(shape[1:], start, stop)]


@final
class FlatRange(Tensor):
    """Looks like the whole tensor; holds the elements [start, start + length) of it, perhaps none.

    A checkpoint's planner asks it for its boxes (torch.distributed._checkpointable). Nothing can be computed with it.
    """

    @staticmethod
    def __new__(
        cls, elements: Callable[[], Tensor], *, shape: Sequence[int], start: int, length: int, dtype: torch.dtype
    ) -> "FlatRange":
        """A tensor of that shape and type, without memory."""
        made: FlatRange = Tensor._make_wrapper_subclass(cls, tuple(shape), dtype=dtype)
        return made

    def __init__(
        self, elements: Callable[[], Tensor], *, shape: Sequence[int], start: int, length: int, dtype: torch.dtype
    ) -> None:
        """Say what is held.

        Args:
            elements: brings the partition, [length], when it is read or written; live memory if it is to be filled.
            shape: of the whole.
        """
        self._elements = elements
        self._boxes = boxes(shape, start, start + length)

    def __create_write_items__(self, fqn: str, tensor: Any) -> "list[WriteItem]":
        from torch.distributed.checkpoint.metadata import MetadataIndex, TensorProperties
        from torch.distributed.checkpoint.planner import TensorWriteData, WriteItem, WriteItemType

        return [
            WriteItem(
                index=MetadataIndex(fqn, chunk.offsets),
                type=WriteItemType.SHARD,
                tensor_data=TensorWriteData(
                    chunk=chunk, properties=TensorProperties(dtype=self.dtype), size=self.shape
                ),
            )
            for chunk in self.__create_chunk_list__()
        ]

    def __create_chunk_list__(self) -> "list[ChunkStorageMetadata]":
        from torch.distributed.checkpoint.metadata import ChunkStorageMetadata

        return [ChunkStorageMetadata(torch.Size(box.offsets), torch.Size(box.sizes)) for box in self._boxes]

    def __get_tensor_shard__(self, index: "MetadataIndex") -> Tensor:
        box = next(box for box in self._boxes if box.offsets == tuple(index.offset or ()))
        return self._elements().narrow(0, box.at, math.prod(box.sizes)).view(box.sizes)

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"FlatRange(shape={list(self.shape)}, dtype={self.dtype}, boxes={self._boxes})"

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        raise NotImplementedError(
            f"{func}: a FlatRange is a rank's partition of a tensor; only a checkpoint can read it."
        )
