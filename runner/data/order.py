"""Orders of the items of an epoch, as pure functions of (seed, epoch). Law 5."""

from typing import Any, final

import numpy
import torch

from runner.protocols import Order
from runner.world.seeds import mix

Indices = numpy.ndarray[Any, numpy.dtype[numpy.int64]]


def permutation(num_items: int, *, seed: int, epoch: int) -> Indices:
    """The shuffled items of one epoch: [num_items] int64, a pure function of its arguments."""
    # An array, not a tensor: slicing a list of indices out of it costs a fifth, and every micro-batch does that.
    return torch.randperm(num_items, generator=torch.Generator().manual_seed(mix(seed, epoch))).numpy()


@final
class Shuffled:
    """A new permutation each epoch. Keeps the permutation of the epoch that was last asked for."""

    def __init__(self, num_items: int, *, seed: int) -> None:
        self.num_items = num_items
        self._seed = seed
        self._epoch = -1
        self._permutation: Indices = numpy.empty(0, dtype=numpy.int64)

    def indices(self, epoch: int, start: int, stop: int) -> Indices:
        """A slice of the epoch's permutation."""
        if epoch != self._epoch:
            self._epoch, self._permutation = epoch, permutation(self.num_items, seed=self._seed, epoch=epoch)
        return self._permutation[start:stop]


@final
class Sequential:
    """The dataset's own order, in every epoch."""

    def __init__(self, num_items: int) -> None:
        self.num_items = num_items

    def indices(self, epoch: int, start: int, stop: int) -> Indices:
        """From start to stop."""
        return numpy.arange(start, stop)


def order_of(num_items: int, *, seed: int, shuffle: bool) -> Order:
    """The order that `loader.shuffle` asks for."""
    return Shuffled(num_items, seed=seed) if shuffle else Sequential(num_items)
