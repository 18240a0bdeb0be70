"""The outputs of all items of an evaluation set: each rank keeps its own, and then they get the dataset's order."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import zip_longest
from typing import Any, TypeVar

import torch
from torch import Tensor

from runner.metric.feeds import Values
from runner.protocols import World

T = TypeVar("T")
NOTHING = object()
PIECE_BYTES = 16 << 20
OBJECT_BYTES = 64


def on_host(values: Values) -> dict[str, Any]:
    """The values with tensors on the host, in memory of their own."""
    return {
        name: value.detach().to("cpu", copy=True) if isinstance(value, Tensor) else value
        for name, value in values.items()
    }


def in_dataset_order(world: World, own: list[T]) -> list[T]:
    """One value for each micro-batch of the evaluation set, in the dataset's order, on rank 0; none on others.

    They are sent in pieces of about PIECE_BYTES, and what a rank has sent it no longer holds. Collective.

    Args:
        own: one for each micro-batch of this rank that is no filler. It is empty afterwards.
    """
    of_ranks = world.gather_objects((len(own), max(map(_bytes, own), default=0)))
    num_rounds = max(num for num, _ in of_ranks)
    num_pieces = max(1, PIECE_BYTES // max(1, *(largest for _, largest in of_ranks)))
    ordered: list[T] = []
    own.reverse()
    for _ in range(0, num_rounds, num_pieces):
        piece = [own.pop() for _ in range(min(num_pieces, len(own)))]
        rounds = zip_longest(*world.gather_on_main(piece), fillvalue=NOTHING)
        ordered += [value for values in rounds for value in values if value is not NOTHING]
    return ordered


def _bytes(value: Any) -> int:
    """About the size of a micro-batch's values."""
    if isinstance(value, Tensor):
        return value.nbytes
    if isinstance(value, Mapping):
        return sum(map(_bytes, value.values()))
    return sum(map(_bytes, value)) if isinstance(value, list | tuple) else OBJECT_BYTES


def joined(micro_batches: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """All items of each output: a tensor [items, ...], or a list with one entry per item.

    It is a list of tensors if micro-batches have tensors of different shapes, padded to different lengths for example.

    Args:
        micro_batches: empty afterwards, so that no more than one output is held twice.
    """
    names = [*micro_batches[0]] if micro_batches else ()
    return {name: _join([micro_batch.pop(name) for micro_batch in micro_batches]) for name in names}


def _join(parts: Sequence[Tensor | Sequence[Any]]) -> Any:
    tensors = [part for part in parts if isinstance(part, Tensor)]
    if len(tensors) == len(parts) and len({(tensor.shape[1:], tensor.dtype) for tensor in tensors}) == 1:
        return torch.cat(tensors)
    return [*_entries(parts)]


def _entries(parts: Iterable[Any]) -> Iterable[Any]:
    for part in parts:
        yield from part
