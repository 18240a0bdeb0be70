"""What of a tensor lies on this rank, for tensors that may be sharded."""

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor


@runtime_checkable
class Sharded(Protocol):
    """A DTensor, by what is needed of it: its module takes half a second to import."""

    def to_local(self) -> Tensor:
        """This rank's part, sharing memory with it."""
        ...


@torch.no_grad()
def local_part(tensor: Tensor) -> Tensor:
    """This rank's part of a DTensor, or the tensor itself; shares its memory."""
    return tensor.to_local() if isinstance(tensor, Sharded) else tensor
