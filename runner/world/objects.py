"""The values of all ranks on every rank, in one message if they are small: torch sends their sizes in another first."""

import pickle
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import pad

__all__ = ["gather_pickled"]

FIRST_BYTES = 1024
"""Of the message that everybody sends: a length, and as much of the value as there is room for."""
LENGTH_BYTES = 8


def gather_pickled(value: Any, *, group: dist.ProcessGroup) -> list[Any]:
    """The values of all ranks in rank order. Collective, on the host; pickled."""
    pickled = pickle.dumps(value)
    message = torch.frombuffer(bytearray(len(pickled).to_bytes(LENGTH_BYTES, "little") + pickled), dtype=torch.uint8)
    received = _gather(message[:FIRST_BYTES], FIRST_BYTES, group)
    lengths = [LENGTH_BYTES + int.from_bytes(bytes(one[:LENGTH_BYTES].numpy()), "little") for one in received]
    longest = max(lengths)
    if longest > FIRST_BYTES:
        rest = _gather(message[FIRST_BYTES:], longest - FIRST_BYTES, group)
        received = [torch.cat(parts) for parts in zip(received, rest, strict=True)]
    return [
        pickle.loads(memoryview(one.numpy())[LENGTH_BYTES:length])
        for one, length in zip(received, lengths, strict=True)
    ]


def _gather(part: Tensor, length: int, group: dist.ProcessGroup) -> list[Tensor]:
    """The parts of all ranks, each filled up to this length."""
    gathered = [torch.empty(length, dtype=torch.uint8) for _ in range(dist.get_world_size(group))]
    dist.all_gather(gathered, pad(part, (0, length - len(part))), group=group)
    return gathered
