"""A tensor of which a rank holds several rectangular boxes, as a checkpoint stores and reads them.

A checkpoint's planner asks such a tensor for its boxes (torch.distributed._checkpointable).
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

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
    """Where its elements begin in what the rank holds; in which unit is up to the tensor."""


class Boxed(Tensor):
    """Has the shape and dtype of the full tensor, but only some boxes of it, possibly none. A base class.

    Subclasses set `_boxes`, and return the live memory of one from `_part`.
    """

    _boxes: Sequence[Box]

    def _part(self, box: Box) -> Tensor:
        """This rank's elements of a box, in its shape, sharing memory with what the rank holds."""
        raise NotImplementedError

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
        return self._part(next(box for box in self._boxes if box.offsets == tuple(index.offset or ())))

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"{type(self).__name__}(shape={list(self.shape)}, dtype={self.dtype}, boxes={self._boxes})"

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        raise NotImplementedError(
            f"{func}: a {cls.__name__} is one rank's part of a tensor; only a checkpoint can read it."
        )
