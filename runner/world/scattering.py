"""Bytes from one rank to each other one, of any lengths."""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import pad

__all__ = ["scatter_bytes"]


def scatter_bytes(parts: Sequence[Tensor] | None, *, group: dist.ProcessGroup) -> Tensor:
    """This rank's part of those that rank 0 brings. Collective, on the host.

    Args:
        parts: uint8 [n] for each rank, where n may differ; None on other ranks.
    """
    size, rank = dist.get_world_size(group), dist.get_rank(group)
    lengths = torch.tensor([len(part) for part in parts]) if parts else torch.empty(size, dtype=torch.int64)
    dist.broadcast(lengths, group=group, group_src=0)
    longest = int(lengths.max())
    received = torch.empty(longest, dtype=torch.uint8)
    sent = [pad(part, (0, longest - len(part))) for part in parts] if parts else None
    dist.scatter(received, sent, group=group, group_src=0)
    return received[: int(lengths[rank])]
