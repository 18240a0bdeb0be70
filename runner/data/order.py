"""The order of items as a pure function of (seed, epoch, position), and how a step's items are cut. Law 5."""

from collections.abc import Iterator
from itertools import chain
from typing import Any, NamedTuple

import numpy
import torch

from runner.world.seeds import mix

Indices = numpy.ndarray[Any, numpy.dtype[numpy.int64]]
CHUNK_ITEMS = 4096  # of which the indices are held as Python integers: some 150 kB


class MicroBatchIndices(NamedTuple):
    """What one rank reads of one accumulation round."""

    indices: list[int]
    """Into the dataset. Never empty: a rank without items repeats one of the step's, so that it can run along."""
    items: int
    """How many of them count: all, or 0 for a filler."""
    epoch: int


class StepPlan(NamedTuple):
    """Which items one optimizer step reads on one rank."""

    micro_batches: list[MicroBatchIndices]
    items: int
    """Of the whole step, over ranks and rounds."""
    position: int
    """Items consumed once this step is done, over all epochs."""


def epoch_order(num_items: int, *, seed: int, epoch: int) -> Indices:
    """The items of one epoch: [num_items] int64, a permutation that depends on nothing but its arguments."""
    # An array, not a tensor: cutting a list of indices out of it costs a fifth, and every micro-batch does that.
    return torch.randperm(num_items, generator=torch.Generator().manual_seed(mix(seed, epoch))).numpy()


def split(items: int, *, ranks: int, micro_items: int) -> list[tuple[int, int]]:
    """Cut a step's items into slots of at most `micro_items`, equally many for each rank, as even as can be.

    Slot `round * ranks + rank` belongs to that rank in that round. A full step fills every slot; the short one at the
    end of an epoch leaves slots that differ by one item at most, some of them empty where there are fewer items than
    ranks.

    Returns:
        (first, length) of each slot within the step; an empty slot starts at the step's first item.
    """
    num_slots = -(-items // (ranks * micro_items)) * ranks
    base, longer = divmod(items, num_slots)
    slots, first = [], 0
    for slot in range(num_slots):
        length = base + (slot < longer)
        slots.append((first if length else 0, length))
        first += length
    return slots


class Order(NamedTuple):
    """One rank's view of a dataset's order."""

    num_items: int
    step_items: int
    """Of one optimizer step, over all ranks."""
    micro_items: int
    rank: int
    """Among those that read different items."""
    ranks: int
    seed: int
    shuffle: bool

    def steps_from(self, position: int) -> Iterator[StepPlan]:
        """Every step from `position` (items consumed since the run began) on, epoch after epoch, without end.

        An epoch ends in a short step if the step's items do not divide it: every item once an epoch, none dropped.
        """
        return chain.from_iterable(self._chunks_from(position))

    def _chunks_from(self, position: int) -> Iterator[list[StepPlan]]:
        """The steps, many at once: planning one between two steps takes thrice as long as in a row, on warm caches."""
        chunk = max(1, CHUNK_ITEMS // self.step_items) * self.step_items
        while True:
            epoch, start = divmod(position, self.num_items)
            order = self._order(epoch)
            full = self.num_items - (self.num_items - start) % self.step_items
            for first in range(start, full, chunk):
                steps = order[first : min(first + chunk, full)].reshape(-1, self.step_items)
                yield self._plans(steps, epoch, first)
            if full < self.num_items:
                yield self._plans(order[full:].reshape(1, -1), epoch, full)
            position = (epoch + 1) * self.num_items

    def _plans(self, steps: Indices, epoch: int, start: int) -> list[StepPlan]:
        """Those of steps [steps, items] in a row that begin at `start` of the epoch."""
        items = steps.shape[1]
        slots = split(items, ranks=self.ranks, micro_items=self.micro_items)[self.rank :: self.ranks]
        rounds = [(steps[:, first : first + max(length, 1)].tolist(), length) for first, length in slots]
        done = epoch * self.num_items + start
        return [
            StepPlan(
                [MicroBatchIndices(indices[step], length, epoch) for indices, length in rounds],
                items,
                done + (step + 1) * items,
            )
            for step in range(len(steps))
        ]

    def _order(self, epoch: int) -> Indices:
        return (
            epoch_order(self.num_items, seed=self.seed, epoch=epoch) if self.shuffle else numpy.arange(self.num_items)
        )


def once(num_items: int, *, micro_items: int, rank: int, ranks: int) -> Iterator[MicroBatchIndices]:
    """Every item once, in the dataset's order, for evaluation: equally many shares on every rank."""
    step_items = micro_items * ranks
    order = Order(num_items, step_items, micro_items, rank, ranks, seed=0, shuffle=False)
    for plan in order.steps_from(0):
        yield from plan.micro_batches
        if plan.position >= num_items:
            return
