"""This rank's part of a tensor that may be sharded."""

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn import Parameter

_WHOLE = (Tensor, Parameter)
"""Types that need not be asked for their methods, which takes 20 µs."""


@runtime_checkable
class Sharded(Protocol):
    """The part of DTensor's interface that is needed here: importing DTensor takes half a second."""

    def to_local(self) -> Tensor:
        """This rank's part, sharing memory with it."""
        ...


@runtime_checkable
class Awaited(Protocol):
    """A tensor that another rank computes: without values until one has arrived."""

    arrived: Tensor | None


def local_part(tensor: Tensor) -> Tensor:
    """This rank's part of a DTensor, or the tensor itself; shares its memory."""
    if type(tensor) in _WHOLE:
        return tensor
    with torch.no_grad():
        return tensor.to_local() if isinstance(tensor, Sharded) else tensor
