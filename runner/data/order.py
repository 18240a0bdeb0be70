"""Orders of the items of an epoch, as pure functions of (seed, epoch). Law 5.

An order is asked for slices, and a run goes through them in sequence: each order keeps what it has worked out for the
epoch that was last asked for, which takes no memory that depends on the number of items unless it says so.
"""

from functools import lru_cache
from typing import Any, final

import numpy
import torch

from runner.data.permutation import Indices, KeyedPermutation, uniform
from runner.world.seeds import mix

__all__ = ["Drawn", "Indices", "Sequential", "Shuffled", "ShuffledWindows", "StoredPermutation", "WithoutReplacement"]

Weights = numpy.ndarray[Any, numpy.dtype[numpy.float64]]


@final
class Sequential:
    """The dataset's own order, in every epoch."""

    def __init__(self, num_items: int) -> None:
        self.num_items = num_items

    def indices(self, epoch: int, start: int, stop: int) -> Indices:
        """From start to stop."""
        return numpy.arange(start, stop)


@final
class Shuffled:
    """Another permutation in each epoch, computed where it is asked for."""

    def __init__(self, num_items: int, *, seed: int) -> None:
        self.num_items = num_items
        self._of_epoch = lru_cache(1)(lambda epoch: KeyedPermutation(num_items, seed=mix(seed, epoch)))

    def indices(self, epoch: int, start: int, stop: int) -> Indices:
        """A slice of the epoch's permutation."""
        return self._of_epoch(epoch).indices(start, stop)


@final
class ShuffledWindows:
    """Windows of neighbouring items, in another order in each epoch, and so are the items of each window.

    Between two windows nothing is mixed: as many items as a window has are read close to each other.
    """

    def __init__(self, num_items: int, *, window: int, seed: int) -> None:
        self.num_items = num_items
        self._window = window
        self._seed = seed
        self._last = (num_items - 1) // window  # which may be shorter
        self._missing = (self._last + 1) * window - num_items
        self._of_epoch = lru_cache(1)(self._windows)

    def indices(self, epoch: int, start: int, stop: int) -> Indices:
        """A slice of the epoch."""
        windows, short_ends_at = self._of_epoch(epoch)
        pieces: list[Indices] = [numpy.empty(0, dtype=numpy.int64)]
        while start < stop:
            place, first = divmod(start + self._missing * (start >= short_ends_at), self._window)
            window = int(windows.indices(place, place + 1)[0])
            size = self._window - self._missing * (window == self._last)
            inside = KeyedPermutation(size, seed=mix(self._seed, epoch, window))
            end = min(size, first + stop - start)
            pieces.append(window * self._window + inside.indices(first, end))
            start += end - first
        return numpy.concatenate(pieces)

    def _windows(self, epoch: int) -> tuple[KeyedPermutation, int]:
        """The order of the windows, and where in the epoch the short one ends."""
        windows = KeyedPermutation(self._last + 1, seed=mix(self._seed, epoch))
        return windows, (windows.place_of(self._last) + 1) * self._window - self._missing


@final
class Drawn:
    """Items drawn with replacement, each as often as its weight says. Keeps 8 bytes for each item of the dataset."""

    def __init__(self, weights: Weights, *, num_items: int, seed: int) -> None:
        """Draw `num_items` for an epoch.

        Args:
            weights: [items of the dataset], not negative, at least one above 0.
        """
        self.num_items = num_items
        self._seed = seed
        self._ends = numpy.cumsum(weights)

    def indices(self, epoch: int, start: int, stop: int) -> Indices:
        """What is drawn at these places, each independently of the others."""
        drawn = uniform(start, stop, seed=mix(self._seed, epoch)) * self._ends[-1]
        found: Indices = numpy.searchsorted(self._ends, drawn, side="right").astype(numpy.int64)
        return found


@final
class WithoutReplacement:
    """Every item of a weight above 0 once an epoch, heavy ones rather early: successive sampling.

    Of an epoch that is cut short by `num_items`, heavy items are in it rather than light ones. Efraimidis and Spirakis,
    Weighted random sampling with a reservoir (2006). Keeps 16 bytes for each item of the dataset.
    """

    def __init__(self, weights: Weights, *, num_items: int, seed: int) -> None:
        """Take `num_items` for an epoch, at most as many as have a weight above 0."""
        self.num_items = num_items
        self._seed = seed
        self._weights = weights
        self._of_epoch = lru_cache(1)(self._sampled)

    def indices(self, epoch: int, start: int, stop: int) -> Indices:
        """A slice of the epoch."""
        return self._of_epoch(epoch)[start:stop]

    def _sampled(self, epoch: int) -> Indices:
        drawn = uniform(0, len(self._weights), seed=mix(self._seed, epoch))
        with numpy.errstate(divide="ignore"):  # of a weight of 0: it comes last, and is cut off
            waiting = -numpy.log1p(-drawn) / self._weights
        return numpy.argsort(waiting, kind="stable")[: self.num_items].astype(numpy.int64)


@final
class StoredPermutation:
    """Another permutation in each epoch, drawn by torch. Keeps 8 bytes for each item."""

    def __init__(self, num_items: int, *, seed: int) -> None:
        self.num_items = num_items
        self._seed = seed
        self._of_epoch = lru_cache(1)(self._permutation)

    def indices(self, epoch: int, start: int, stop: int) -> Indices:
        """A slice of the epoch's permutation."""
        return self._of_epoch(epoch)[start:stop]

    def _permutation(self, epoch: int) -> Indices:
        generator = torch.Generator().manual_seed(mix(self._seed, epoch))
        permutation: Indices = torch.randperm(self.num_items, generator=generator).numpy()
        return permutation
