"""Rows of all ranks brought together, with and without a gradient; ranks may have different numbers of rows."""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from runner.errors import HookError
from runner.protocols import World
from runner.world.agreement import agree
from runner.world.nested import map_tensors

__all__ = ["Gathered", "gather_rows", "gather_rows_with_grad", "padded"]

NARROW = (torch.float16, torch.bfloat16)


class Gathered(NamedTuple):
    """The rows of all ranks."""

    values: Any
    """As they were given, with the rows of all ranks in rank order."""
    own: slice
    """Which rows are this rank's own."""


def gather_rows(world: World, values: Any, *, counts: bool) -> Any:
    """Tensors [n, ...] of all ranks as [sum of n, ...]. Collective.

    Args:
        counts: False leaves out the rows of this rank.

    Raises:
        RankError: ranks differ in more than the first dimension.
    """
    rows = map_tensors(lambda path, tensor: (tensor if tensor.ndim else tensor[None]).detach(), values)
    rows = rows if counts else _none_of(rows)
    calls = agree(world, "gather", rows, same=_row)
    sizes = iter([call.tensors[number].shape[0] for call in calls] for number in range(len(calls[0].tensors)))
    return map_tensors(lambda path, tensor: _all_rows(world, tensor, next(sizes)), rows)


def gather_rows_with_grad(world: World, values: Any, *, counts: bool) -> Gathered:
    """Tensors [n, ...] of all ranks as [sum of n, ...]; backward sums the gradients of all ranks. Collective.

    Args:
        counts: False leaves out the rows of this rank on others; on this rank they follow those of the others.

    Raises:
        HookError: the tensors of a rank have different numbers of rows.
        RankError: ranks differ in more than the first dimension.
    """
    lengths: dict[str, int] = {}

    def measure(path: str, tensor: Tensor) -> Tensor:
        if not tensor.ndim:
            raise HookError(f"gather_with_grad: {path or 'the tensor'} is a scalar, but must have rows: [n, ...].")
        lengths[path] = len(tensor)
        return tensor

    map_tensors(measure, values)
    if len(set(lengths.values())) != 1:
        told = ", ".join(f"{path or 'it'} {length}" for path, length in lengths.items()) or "no tensor at all"
        raise HookError(f"gather_with_grad: all tensors must have the same number of rows, but there are {told}.")
    sent = values if counts else _none_of(values)
    calls = agree(world, "gather_with_grad", sent, same=_row, with_grad=True)
    sizes = [call.tensors[0].shape[0] for call in calls]
    start = sum(sizes[: world.rank]) if counts else sum(sizes)
    gathered = map_tensors(lambda path, tensor: _GatherRows.apply(world, sizes, tensor), sent)  # type: ignore[no-untyped-call]
    if not counts:
        own = iter(_tensors(values))
        gathered = map_tensors(lambda path, tensor: torch.cat([tensor, next(own)]), gathered)
    return Gathered(gathered, slice(start, start + next(iter(lengths.values()))))


def padded(tensor: Tensor, length: int, *, dim: int = 0, value: float = 0, first: bool = False) -> Tensor:
    """The tensor with a dimension padded to a length, at its end or at its beginning."""
    missing = length - tensor.shape[dim]
    if not missing:
        return tensor
    shape = [*tensor.shape]
    shape[dim] = missing
    filling = tensor.new_full(shape, value)
    return torch.cat([filling, tensor] if first else [tensor, filling], dim=dim)


class _GatherRows(torch.autograd.Function):
    """Forward gathers rows, backward sums what all ranks have as their gradient and returns that of own rows."""

    @staticmethod
    def forward(ctx: Any, world: World, sizes: list[int], tensor: Tensor) -> Tensor:
        ctx.world, ctx.sizes = world, sizes
        return _all_rows(world, tensor, sizes)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, None, Tensor]:
        wide = gradient.float() if gradient.dtype in NARROW else gradient  # a sum over many ranks would be rounded
        total = ctx.world.sum(wide.contiguous()).to(gradient.dtype)
        return None, None, total.split(ctx.sizes)[ctx.world.rank]


def _all_rows(world: World, tensor: Tensor, sizes: list[int]) -> Tensor:
    longest = max(sizes)
    parts = world.gather(padded(tensor, longest).contiguous())
    return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])


def _none_of(values: Any) -> Any:
    return map_tensors(lambda path, tensor: tensor[:0], values)


def _tensors(values: Any) -> list[Tensor]:
    found: list[Tensor] = []

    def note(path: str, tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    map_tensors(note, values)
    return found


def _row(shape: tuple[int, ...]) -> tuple[int, ...]:
    return shape[1:]
