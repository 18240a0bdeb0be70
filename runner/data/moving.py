"""Moving batches to the device, while it computes the step before."""

from collections.abc import Callable
from functools import partial
from typing import Any, Protocol, final, runtime_checkable

import torch
from torch import Tensor

from runner.world.nested import contents, map_leaves

__all__ = ["mover", "to_device"]


@runtime_checkable
class Movable(Protocol):
    """A tensor, or a batch object that moves its own tensors (transformers' BatchEncoding)."""

    def to(self, device: torch.device, *, non_blocking: bool) -> Any:
        """On that device."""
        ...


def moves_itself(value: Any) -> bool:
    """Whether it is a tensor, or a batch object that moves its tensors."""
    return isinstance(value, Movable)


def to_device(batch: Any, device: torch.device, *, non_blocking: bool) -> Any:
    """A nested batch with every tensor in it moved; what is no tensor stays as it is.

    An object that moves its own tensors does so, whatever else it is.
    """

    def move(path: str, leaf: Any) -> Any:
        return leaf.to(device, non_blocking=non_blocking) if moves_itself(leaf) else leaf

    return map_leaves(move, batch, is_leaf=moves_itself)


def mover(device: torch.device, *, asynchronous: bool) -> Callable[[Any], Any] | None:
    """From a batch on the host to the batch on a device; None if it is there already.

    Args:
        asynchronous: whether the device has streams, and batches are in page-locked memory.
    """
    if device.type == "cpu":
        return None
    return SideStream(device) if asynchronous else partial(to_device, device=device, non_blocking=False)


@final
class SideStream:
    """Copies batches on a stream of their own. Neither the host nor the step at work waits for them.

    The host is ahead of the device (law 8): it asks for the next batch while the step before is still computed. On the
    stream of the computation, the copy would begin when that ends.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._module = torch.get_device_module(device)
        self._stream = self._module.Stream(device)

    def __call__(self, batch: Any) -> Any:
        computing = self._module.current_stream(self._device)

        def copy(path: str, leaf: Any) -> Any:
            if not moves_itself(leaf):
                return leaf
            # The tensors of an object that nobody can look into would be freed while they are in use.
            is_opaque = not isinstance(leaf, Tensor) and contents(leaf) is None
            with self._module.stream(computing if is_opaque else self._stream):
                return leaf.to(self._device, non_blocking=True)

        def note_use(path: str, leaf: Any) -> Any:
            if isinstance(leaf, Tensor):
                leaf.record_stream(computing)
            return leaf

        moved = map_leaves(copy, batch, is_leaf=moves_itself)
        computing.wait_stream(self._stream)
        map_leaves(note_use, moved)
        return moved
