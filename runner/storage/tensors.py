"""Whole tensors of a committed checkpoint, read one at a time on the host, and how those of two checkpoints differ."""

import math
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from runner.errors import CheckpointError
from runner.storage.decode import decode_metadata
from runner.storage.files import open_regular
from runner.storage.format import TensorMetadata
from runner.storage.integrity import verify_sizes
from runner.storage.memory import DTYPES, view_bytes
from runner.storage.payload import read_verified

__all__ = ["Difference", "read_tensor", "tensor_differences"]


class Difference(NamedTuple):
    """A tensor that is not the same in two checkpoints."""

    name: str
    size: float
    """The largest difference of two elements; infinite if shape or dtype differ, or one of them is missing."""


def read_tensor(checkpoint: Path, one: TensorMetadata) -> Tensor:
    """Assemble a whole tensor from its verified chunks.

    Raises:
        CheckpointError: a file is corrupted or cannot be read.
    """
    whole = torch.empty(one.shape, dtype=DTYPES[one.dtype])
    assert sum(math.prod(chunk.shape) for chunk in one.chunks) == whole.numel(), one
    for chunk in one.chunks:
        box = whole
        for dim, (offset, length) in enumerate(zip(chunk.offset, chunk.shape, strict=True)):
            box = box.narrow(dim, offset, length)
        path = checkpoint / chunk.file
        room = box if box.is_contiguous() else torch.empty_like(box, memory_format=torch.contiguous_format)
        try:
            with open_regular(path) as file:
                read_verified(file, path, chunk, view_bytes(room))
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read: {error.strerror}.") from error
        if room is not box:
            box.copy_(room)
    return whole


def tensor_differences(before: Path, after: Path) -> tuple[int, list[Difference]]:
    """Compare every tensor of two checkpoints, those of optimizers included, bit by bit.

    Returns:
        How many tensors there are, and those that differ.

    Raises:
        CheckpointError: one of the checkpoints is corrupted.
    """
    was, is_now = (decode_metadata(path, verify_sizes(path)) for path in (before, after))
    names = sorted({*was, *is_now})
    found = []
    for name in names:
        size = math.inf
        if (
            name in was
            and name in is_now
            and (was[name].shape, was[name].dtype)
            == (
                is_now[name].shape,
                is_now[name].dtype,
            )
        ):
            size = _apart(read_tensor(before, was[name]), read_tensor(after, is_now[name]))
        if size:
            found.append(Difference(name, size))
    return len(names), found


def _apart(was: Tensor, is_now: Tensor) -> float:
    """The largest difference of two elements; 0 only if all bits are equal."""
    if view_bytes(was) == view_bytes(is_now):
        return 0.0
    apart = (was.double() - is_now.double()).abs().nan_to_num(nan=math.inf).max().item()
    return max(apart, math.ulp(0.0))  # -0 and 0 differ in bits only
