"""Copies of live tensors that are made while the next forward and backward only read them."""

import threading
from collections.abc import Iterable, Sequence
from typing import NamedTuple, final

import numpy as np
import torch
import xxhash
from torch import Tensor

from runner.checkpoint.background import Background
from runner.storage.memory import is_contiguous_on_host, on_host, view_bytes


class Copy(NamedTuple):
    """A tensor and its copy."""

    name: str
    """In a checkpoint."""
    live: Tensor
    room: Tensor
    """Host memory of the same shape and dtype."""

    def make(self) -> None:
        """Copy, in this thread alone: torch would use several, and slow the forward down."""
        if is_contiguous_on_host(self.live):
            np.copyto(_as_bytes(self.room).numpy(), _as_bytes(self.live).numpy())
        else:
            self.room.copy_(self.live)

    @property
    def is_exact(self) -> bool:
        """Whether live tensor and copy have the same bits: by hash, since torch.equal takes nine times as long."""
        return _hash(self.live) == _hash(self.room)


@final
class Snapshot:
    """A copy of a state, which must not change before `finish` has returned, except by a forward."""

    def __init__(self, pending: Sequence[Copy], *, complete: Sequence[Copy] = ()) -> None:
        """Start to copy in a background thread.

        Args:
            pending: to be copied.
            complete: have been copied, and will be compared with the live tensors.
        """
        self._pending = [(copy, copy.live._version) for copy in pending]
        self._complete = list(complete)
        self._changed: list[str] = []
        self._copying = Background()
        self._finished = threading.Event()
        if pending:
            self._copying.start(lambda: _make(pending))
        else:
            self._finished.set()

    def finish(self, *, compare: bool) -> set[str]:
        """Wait until everything is copied. To be called before anything but a forward changes the state.

        Args:
            compare: the complete ones with the live tensors.

        Returns:
            The names of tensors that the forward has changed: autograd's count of the changes of a tensor has grown, or
            its bits are not those that were copied.
        """
        self._copying.wait()
        self._changed = [copy.name for copy, version in self._pending if copy.live._version != version]
        changed = {*self._changed, *(copy.name for copy in self._complete if compare and not copy.is_exact)}
        self._pending, self._complete = [], []  # the live tensors may be freed
        self._finished.set()
        return changed

    def torn(self) -> Sequence[str]:
        """Wait for `finish` in another thread; the names of tensors of which the copy is not of one moment."""
        self._finished.wait()
        return self._changed


def _make(copies: Iterable[Copy]) -> None:
    for copy in copies:
        copy.make()


def _hash(tensor: Tensor) -> bytes:
    return xxhash.xxh3_128_digest(view_bytes(on_host(tensor)))


def _as_bytes(tensor: Tensor) -> Tensor:
    return tensor.reshape(-1).view(torch.uint8)
