"""Weights in which several matrices lie side by side (query, key and value), each of them split among tensor ranks.

Splitting such a weight in its own order would give one rank the queries and another the keys. So its rows are put in
the order of the ranks before it is split: for two ranks and the three parts Q, K, V of two halves each,

    in the model      Q0 Q1 K0 K1 V0 V1
    in the order      Q0 K0 V0 | Q1 K1 V1

A checkpoint holds the model's own order: `Packed` says where in it a rank's rows belong.
"""

from typing import Any, final

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from runner.strategy.common.boxed import Box, Boxed


def in_rank_order(tensor: Tensor, *, dim: int, parts: int, ranks: int) -> Tensor:
    """The tensor with the rows along `dim`, which are `parts` matrices, in the order of the ranks."""
    shape = tensor.shape
    unit = shape[dim] // (parts * ranks)
    split = tensor.reshape(*shape[:dim], parts, ranks, unit, *shape[dim + 1 :])
    return split.transpose(dim, dim + 1).reshape(shape)


def model_index(at: int, *, size: int, parts: int, ranks: int) -> int:
    """Where in the model's order the row stands that is at index `at` in the order of the ranks."""
    unit = size // (parts * ranks)
    rank, rest = divmod(at, parts * unit)
    part, row = divmod(rest, unit)
    return (part * ranks + rank) * unit + row


@final
class Packed(Boxed):
    """A DTensor in the order of the ranks, which checkpoints store in the model's order.

    `to_local` and allocating tensors like it work as for a DTensor. The unit of a box's `at` is a row along `dim`.
    """

    @staticmethod
    def __new__(cls, tensor: DTensor, *, dim: int, parts: int, ranks: int) -> "Packed":
        """Create a tensor of this shape and dtype without storage of its own."""
        packed: Packed = Tensor._make_wrapper_subclass(
            cls, tuple(tensor.shape), dtype=tensor.dtype, device=tensor.device
        )
        return packed

    def __init__(self, tensor: DTensor, *, dim: int, parts: int, ranks: int) -> None:
        """Set what is packed, along which dimension.

        Args:
            tensor: rows along `dim` are in the order of the ranks.
            dim: the dimension along which the parts lie side by side.
            parts: how many there are, of equal size.
            ranks: tensor ranks, each of which holds a piece of every part.
        """
        self._tensor = tensor
        self._layout = {"dim": dim, "parts": parts, "ranks": ranks}
        self._dim = dim
        sizes, offsets = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
        self._boxes = []
        if 0 in sizes:
            return
        size, first = tensor.shape[dim], offsets[dim]
        unit = size // (parts * ranks)
        at = first
        while at < first + sizes[dim]:
            length = min(unit - at % unit, first + sizes[dim] - at)
            start = model_index(at, size=size, parts=parts, ranks=ranks)
            self._boxes.append(
                Box(
                    (*offsets[:dim], start, *offsets[dim + 1 :]),
                    (*sizes[:dim], length, *sizes[dim + 1 :]),
                    at - first,
                )
            )
            at += length

    def to_local(self) -> Tensor:
        """This rank's part, in the order of the ranks, sharing memory with it."""
        return self._tensor.to_local()

    def _part(self, box: Box) -> Tensor:
        return self.to_local().narrow(self._dim, box.at, box.sizes[self._dim])

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        aten = torch.ops.aten
        if func in (aten.zeros_like.default, aten.empty_like.default, aten.detach.default):
            packed: Packed = args[0]
            return cls(func(packed._tensor, *args[1:], **(kwargs or {})), **packed._layout)
        return super().__torch_dispatch__(func, types, args, kwargs)
