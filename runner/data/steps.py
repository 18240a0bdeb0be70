"""How the items of an order are split into steps, and those of a step among ranks and micro-batches."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, count, repeat
from typing import Any, final

import numpy

from runner.data.order import Indices, Sequential
from runner.protocols import LoaderOptions, MicroBatchIndices, Order, SourceRequest, StepPlan, World

CHUNK_ITEMS = 4096  # planned at once, their indices held as Python integers: some 150 kB


def split(items: int, *, ranks: int, micro_items: int) -> list[tuple[int, int]]:
    """Split the items of a step into slots of at most `micro_items`, equally many for each rank, as even as can be.

    Slot `n * ranks + rank` is micro-batch n of that rank. A full step fills every slot; the short step at the end of an
    epoch leaves slots that differ by at most one item, some of them empty if there are fewer items than ranks.

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


def split_by_tokens(lengths: Indices, *, ranks: int, micro_items: int, micro_tokens: int) -> list[tuple[int, int]]:
    """Split the items of a step into slots of at most `micro_tokens`, where each item is as long as the slot's longest.

    As `split` does: every rank has a slot in each round, and the slots of a round differ by at most one item.

    Args:
        lengths: [items], longest first, none above `micro_tokens`.
        micro_items: most items of a slot, whatever their lengths.
    """
    slots: list[tuple[int, int]] = []
    done = 0
    while done < len(lengths):
        most = min(micro_items, micro_tokens // max(1, int(lengths[done])))
        items = min(ranks * most, len(lengths) - done)
        slots += [(done + first, length) for first, length in split(items, ranks=ranks, micro_items=most)]
        done += items
    return slots


@final
@dataclass(frozen=True)
class Parts:
    """Whose micro-batches a process makes: of `num` ranks from `first` on."""

    ranks: int
    """Among which a step is divided."""
    first: int
    num: int = 1

    @classmethod
    def of(cls, world: World, options: LoaderOptions) -> "Parts":
        """Of a process that reads."""
        return cls(world.size * options.reads_for, world.rank * options.reads_for, options.reads_for)

    @property
    def own(self) -> range:
        """Those ranks."""
        return range(self.first, self.first + self.num)

    def slots(self, slots: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
        """Their slots, round by round."""
        return [slot for number, slot in enumerate(slots) if number % self.ranks in self.own]


def cut_items(items: Sequence[Any], parts: Parts, *, micro_items: int) -> Iterator[tuple[list[Any], int]]:
    """The items of each micro-batch, as `split` divides a step, and how many of them count: all, or none."""
    for first, length in parts.slots(split(len(items), ranks=parts.ranks, micro_items=micro_items)):
        yield [*items[first : first + max(length, 1)]], length


@final
@dataclass(frozen=True, kw_only=True)
class RankSteps:
    """The steps of one rank over an order."""

    order: Order
    step_items: int
    """Of one optimizer step, over all ranks."""
    micro_items: int
    rank: int
    """Among the ranks that read different items."""
    ranks: int
    lengths: Indices | None = None
    """Of each item of the dataset, to put items of similar length into one micro-batch; None = as they follow."""
    micro_tokens: int | None = None
    """Most items × longest length in one micro-batch, if lengths are given; None = any."""
    reads_for: int = 1
    """How many ranks these steps are of, from `rank` on: their micro-batches, round by round."""

    @classmethod
    def of(
        cls, order: Order, request: SourceRequest, *, lengths: Indices | None = None, micro_tokens: int | None = None
    ) -> "RankSteps":
        """The steps that a run needs, over an order."""
        parts = Parts.of(request.world, request.loader)
        return cls(
            order=order,
            step_items=request.step_items,
            micro_items=request.micro_items,
            rank=parts.first,
            ranks=parts.ranks,
            reads_for=parts.num,
            lengths=lengths,
            micro_tokens=micro_tokens,
        )

    def starting_at(self, position: int) -> Iterator[StepPlan]:
        """Every step from `position` (items consumed since the run began) on, epoch after epoch, without end.

        If the step's items do not divide an epoch, it ends in a short step: every item is read once an epoch.
        """
        return chain.from_iterable(self._chunks_from(position))

    def _chunks_from(self, position: int) -> Iterator[list[StepPlan]]:
        """Many steps at once: planning one between two steps takes three times as long as in a row, on warm caches."""
        chunk = max(1, CHUNK_ITEMS // self.step_items) * self.step_items
        num_items = self.order.num_items
        while True:
            epoch, start = divmod(position, num_items)
            full = num_items - (num_items - start) % self.step_items
            for first in range(start, full, chunk):
                indices = self.order.indices(epoch, first, min(first + chunk, full))
                yield self._plans(indices.reshape(-1, self.step_items), epoch, first)
            if full < num_items:
                yield self._plans(self.order.indices(epoch, full, num_items).reshape(1, -1), epoch, full)
            position = (epoch + 1) * num_items

    def _plans(self, steps: Indices, epoch: int, start: int) -> list[StepPlan]:
        """Plans of consecutive steps [steps, items], the first of which begins at `start` of the epoch."""
        items = steps.shape[1]
        first = epoch * self.order.num_items + start + items
        return [
            StepPlan([MicroBatchIndices(indices, counted, epoch) for indices, counted in cut], items, position)
            for position, cut in zip(count(first, items), self._cut(steps), strict=False)
        ]

    def _cut(self, steps: Indices) -> Iterator[tuple[tuple[list[int], int], ...]]:
        """This rank's micro-batches of each step: indices, and how many of them count."""
        if self.lengths is not None:
            lengths = self.lengths[steps]
            longest_first = numpy.argsort(-lengths, axis=1, kind="stable")
            steps = numpy.take_along_axis(steps, longest_first, axis=1)
            if self.micro_tokens is not None:
                lengths = numpy.take_along_axis(lengths, longest_first, axis=1)
                for step, its_lengths in zip(steps, lengths, strict=True):
                    yield from self._columns(step[None], self._slots_by_tokens(its_lengths))
                return
        yield from self._columns(steps, split(steps.shape[1], ranks=self.ranks, micro_items=self.micro_items))

    def _slots_by_tokens(self, lengths: Indices) -> list[tuple[int, int]]:
        assert self.micro_tokens is not None
        return split_by_tokens(lengths, ranks=self.ranks, micro_items=self.micro_items, micro_tokens=self.micro_tokens)

    def _columns(self, steps: Indices, slots: list[tuple[int, int]]) -> Iterator[tuple[tuple[list[int], int], ...]]:
        """The slots of these ranks, of steps that are divided alike."""
        own = [
            zip(steps[:, first : first + max(length, 1)].tolist(), repeat(length))
            for first, length in Parts(self.ranks, self.rank, self.reads_for).slots(slots)
        ]
        return zip(*own, strict=True)


def single_pass(
    num_items: int, *, micro_items: int, rank: int, ranks: int, reads_for: int = 1, start: int = 0
) -> Iterator[MicroBatchIndices]:
    """Every item from `start` on once, in the dataset's order: equally many micro-batches on every rank.

    Args:
        reads_for: how many ranks to read for, from `rank` on.
    """
    if start >= num_items:
        return
    steps = RankSteps(
        order=Sequential(num_items - start),
        step_items=micro_items * ranks,
        micro_items=micro_items,
        rank=rank,
        ranks=ranks,
        reads_for=reads_for,
    )
    for plan in steps.starting_at(0):
        for indices, items, epoch in plan.micro_batches:
            yield MicroBatchIndices([index + start for index in indices], items, epoch)
        if plan.position >= num_items - start:
            return
