"""Batches and items on their way from a loader worker to its rank: in a message, or in shared memory used again.

Torch makes a file of shared memory for each tensor of each batch. The system zeroes its pages when they are first
written, which takes ten times as long as copying a tensor into pages that are there.
"""

import io
import os
import pickle
from multiprocessing.reduction import ForkingPickler
from typing import Any, final

import numpy
import torch
from torch import Tensor

__all__ = ["Sender", "Sent"]

INLINE_BYTES = 1 << 18
"""Most bytes of tensors that go through the pipe. To ask another process for a file takes as long as these."""
ALIGNMENT = 64
"""Bytes at whose multiples tensors begin. The first ones of shared memory say whether it is in use."""

Bytes = numpy.ndarray[Any, numpy.dtype[numpy.uint8]]
Places = list[tuple[int, int]]


@final
class Sent:
    """What a worker hands out instead of a batch: whoever unpickles it gets the batch."""

    def __init__(self, description: bytes, places: Places, memory: "bytearray | Tensor") -> None:
        self._contents = description, places, memory

    def __reduce__(self) -> tuple[Any, ...]:
        return _received, self._contents


@final
class Sender:
    """Sends the batches of one worker. It has as much shared memory as its rank had of its batches at once."""

    def __init__(self) -> None:
        self._shared: list[Tensor] = []

    def __call__(self, batch: Any) -> Sent:
        """A batch, ready to be pickled once."""
        file, buffers = io.BytesIO(), list[pickle.PickleBuffer]()
        _Pickler(file, pickle.HIGHEST_PROTOCOL, True, buffers.append).dump(batch)
        parts = [numpy.frombuffer(buffer.raw(), dtype=numpy.uint8) for buffer in buffers]
        places, size = _places(parts)
        memory = bytearray(size) if size <= INLINE_BYTES else self._unused(size)
        plain = _plain(memory)
        for (first, end), part in zip(places, parts, strict=True):
            plain[first:end] = part
        return Sent(file.getvalue(), places, memory)

    def _unused(self, size: int) -> Tensor:
        """Shared memory for so many bytes, which nobody reads."""
        unused = [memory for memory in self._shared if not memory[0]]
        found = next((memory for memory in unused if len(memory) >= ALIGNMENT + size), None)
        if found is None:  # batches have become larger, or the rank has more of them at once
            self._shared = [memory for memory in self._shared if memory[0]]
            found = torch.zeros(ALIGNMENT + size + size // 8, dtype=torch.uint8)
            found.share_memory_()  # type: ignore[no-untyped-call]
            self._shared.append(found)
        found[0] = 1
        return found


def _places(parts: list[Bytes]) -> tuple[Places, int]:
    """The first byte and the end of each part in their common memory, and its size."""
    places, end = [], 0
    for part in parts:
        first = -(-end // ALIGNMENT) * ALIGNMENT
        end = first + len(part)
        places.append((first, end))
    return places, end


def _plain(memory: "bytearray | Tensor") -> Bytes:
    if isinstance(memory, Tensor):
        shared: Bytes = memory.numpy()[ALIGNMENT:]
        return shared
    return numpy.frombuffer(memory, dtype=numpy.uint8)


def _received(description: bytes, places: Places, memory: "bytearray | Tensor") -> Any:
    """The batch. Its tensors are in this memory, which is given back with the last of them."""
    plain = numpy.asarray(_Lease(memory)) if isinstance(memory, Tensor) else _plain(memory)
    return pickle.loads(description, buffers=[plain[first:end] for first, end in places])


@final
class _Lease:
    """Shared memory while a rank reads what a worker put there; NumPy arrays in it keep this object."""

    def __init__(self, memory: Tensor) -> None:
        self.__array_interface__ = _plain(memory).__array_interface__
        self._memory = memory
        self._pid = os.getpid()

    def __del__(self) -> None:
        if os.getpid() == self._pid:  # and not in a process that was forked meanwhile
            self._memory[0] = 0


@final
class _Pickler(ForkingPickler):
    """Leaves the bytes of tensors and arrays out of the pickle; what else torch sends in its own way goes in that."""

    def reducer_override(self, value: Any) -> Any:
        if type(value) is not Tensor or not _is_plain(value):
            return NotImplemented
        value = value.resolve_conj().resolve_neg()
        dims = None if value.is_contiguous() else sorted(range(value.dim()), key=value.stride, reverse=True)
        rows = value if dims is None else value.permute(dims).contiguous()
        buffer = pickle.PickleBuffer(rows.flatten().view(torch.uint8).numpy().data)
        return _tensor, (buffer, value.dtype, rows.shape, dims)


def _is_plain(tensor: Tensor) -> bool:
    """Whether the numbers and how they lie are all of a tensor."""
    return (
        tensor.device.type == "cpu"
        and tensor.layout is torch.strided
        and not (tensor.requires_grad or tensor.is_quantized)
    )


def _tensor(plain: Bytes, dtype: torch.dtype, shape: torch.Size, dims: list[int] | None) -> Tensor:
    """A tensor of these bytes.

    Args:
        dims: of the tensor, in the order in which they are in memory; None = in their own.
    """
    rows = torch.from_numpy(plain).view(dtype).view(shape)
    return rows if dims is None else rows.permute([dims.index(dim) for dim in range(len(dims))])
