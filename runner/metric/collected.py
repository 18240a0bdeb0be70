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


def on_host(values: Values) -> Values:
    """The values with tensors on the host, in memory of their own."""
    return {name: value.detach().cpu() if isinstance(value, Tensor) else value for name, value in values.items()}


def in_dataset_order(world: World, own: Sequence[T]) -> list[T]:
    """One value for each micro-batch of the evaluation set, in the dataset's order. Collective.

    Args:
        own: one for each micro-batch of this rank that is no filler.
    """
    rounds = zip_longest(*world.gather_objects(list(own)), fillvalue=NOTHING)
    return [value for values in rounds for value in values if value is not NOTHING]


def joined(micro_batches: Sequence[Values]) -> Mapping[str, Any]:
    """All items of each output: a tensor [items, ...], or a list with one entry per item.

    It is a list of tensors if micro-batches have tensors of different shapes, padded to different lengths for example.
    """
    names = micro_batches[0] if micro_batches else ()
    return {name: _join([micro_batch[name] for micro_batch in micro_batches]) for name in names}


def _join(parts: Sequence[Tensor | Sequence[Any]]) -> Any:
    tensors = [part for part in parts if isinstance(part, Tensor)]
    if len(tensors) == len(parts) and len({(tensor.shape[1:], tensor.dtype) for tensor in tensors}) == 1:
        return torch.cat(tensors)
    return [*_entries(parts)]


def _entries(parts: Iterable[Any]) -> Iterable[Any]:
    for part in parts:
        yield from part
