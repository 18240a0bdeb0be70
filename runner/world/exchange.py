"""Sums and means of many tensors over ranks, a few MiB at a time."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from runner.protocols import World

BUCKET_BYTES = 32 << 20  # at a time, or the largest tensor: what a copy of all of them would add to the memory in use


@torch.no_grad()
def sum_over(world: World, tensors: Sequence[Tensor], *, dtype: torch.dtype = torch.float32) -> None:
    """Replace each tensor by its sum over ranks, in place. Collective.

    Args:
        tensors: of equal shapes on every rank; floating or complex.
        dtype: in which they are added up, at least.
    """
    _reduce(world, tensors, dtype, divisor=1)


@torch.no_grad()
def mean_over(world: World, tensors: Sequence[Tensor], *, dtype: torch.dtype = torch.float32) -> None:
    """Replace floating tensors by their mean over ranks, in place, and all others by those of rank 0. Collective.

    Args:
        tensors: of equal shapes on every rank.
        dtype: in which they are added up, at least. In float64 the mean of equal float32 values is that value.
    """
    _reduce(world, [tensor for tensor in tensors if _has_mean(tensor)], dtype, divisor=world.size)
    for tensor in tensors:
        if not _has_mean(tensor):
            on_device = tensor.to(world.device)
            world.broadcast(on_device)
            tensor.copy_(on_device)


def _has_mean(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


def _reduce(world: World, tensors: Sequence[Tensor], dtype: torch.dtype, *, divisor: int) -> None:
    if world.size == 1:
        return
    for bucket in _buckets([torch.view_as_real(one) if one.is_complex() else one for one in tensors], dtype):
        wide = torch.promote_types(bucket[0].dtype, dtype)
        flat = torch.cat([tensor.reshape(-1).to(world.device, wide) for tensor in bucket])
        total = world.sum(flat)
        if divisor != 1:
            total /= divisor
        for tensor, part in zip(bucket, torch.split(total, [tensor.numel() for tensor in bucket]), strict=True):
            tensor.copy_(part.view(tensor.shape))


def _buckets(tensors: Sequence[Tensor], dtype: torch.dtype) -> Iterator[list[Tensor]]:
    """Tensors of one dtype that follow each other; each that is larger than a bucket is one of its own."""
    bucket: list[Tensor] = []
    size = 0
    for tensor in tensors:
        added = tensor.numel() * torch.promote_types(tensor.dtype, dtype).itemsize
        if bucket and (size + added > BUCKET_BYTES or tensor.dtype != bucket[0].dtype):
            yield bucket
            bucket, size = [], 0
        bucket.append(tensor)
        size += added
    if bucket:
        yield bucket
