"""Collating the items of a micro-batch, and what is said of items that no batch can be made of."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy
import torch
from torch.utils.data import default_collate
from torch.utils.data._utils import collate as torch_collate

from runner.errors import DataError


def collate_in_worker(items: list[Any]) -> Any:
    """What `default_collate` returns, which in a worker would put each tensor into new shared memory."""
    rules = torch_collate.default_collate_fn_map
    return torch_collate.collate(items, collate_fn_map={**rules, torch.Tensor: _stacked})


def _stacked(items: list[torch.Tensor], *, collate_fn_map: Any) -> Any:
    if items[0].is_nested or items[0].layout is not torch.strided:
        return torch_collate.collate_tensor_fn(items)  # which says what is wrong with them
    return torch.stack(items)


def collated(collate: Callable[[list[Any]], Any], items: list[Any], *, indices: Sequence[int] | None = None) -> Any:
    """The batch of a micro-batch's items.

    Args:
        indices: of the items in their dataset; None = they have none, as those of a stream.

    Raises:
        DataError: the items have unequal shapes, and there is no collate that pads them; or collate returned None.
    """
    try:
        batch = collate(items)
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        difference = next(_differences(items), None) if collate in (default_collate, collate_in_worker) else None
        if difference is None:
            raise
        raise DataError(_unequal(*difference, indices)) from error
    if batch is None:
        raise DataError("the data hook's collate returned None. Let it return the batch that it makes of the items.")
    return batch


def _unequal(second: int, where: str, shapes: tuple[str, str], indices: Sequence[int] | None) -> str:
    names = (0, second) if indices is None else (indices[0], indices[second])
    owner = "a micro-batch of the stream" if indices is None else "the dataset"
    return (
        f"items {names[0]} and {names[1]} of {owner} have unequal shapes{where}: {shapes[0]} and {shapes[1]}, so they "
        "cannot be stacked. Return items of one shape, or a collate that pads them: Data(…, collate=pad)."
    )


def _differences(items: list[Any]) -> Iterator[tuple[int, str, tuple[str, str]]]:
    """The items that differ from the first one: which, where inside the item, and both shapes."""
    for number, item in enumerate(items[1:], start=1):
        for where, *shapes in _different(items[0], item, ""):
            yield number, f" at {where}" if where else "", (shapes[0], shapes[1])


def _different(one: Any, other: Any, where: str) -> Iterator[tuple[str, str, str]]:
    """The places in two items at which they differ in shape, and their shapes there."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        if one.keys() != other.keys():
            yield where, f"keys {sorted(map(str, one))}", f"keys {sorted(map(str, other))}"
        for key in one.keys() & other.keys():
            yield from _different(one[key], other[key], f"{where}[{key!r}]")
    elif isinstance(one, list | tuple) and isinstance(other, list | tuple):
        if len(one) != len(other):
            yield where, f"a {type(one).__name__} of {len(one)}", f"a {type(other).__name__} of {len(other)}"
        for index, (left, right) in enumerate(zip(one, other, strict=False)):
            yield from _different(left, right, f"{where}[{index}]")
    elif (left := _shape(one)) != (right := _shape(other)):
        yield where, left, right


def _shape(value: Any) -> str:
    if isinstance(value, torch.Tensor | numpy.ndarray):
        return str([*value.shape])
    return f"a {type(value).__name__}"
