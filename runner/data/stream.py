"""The training items of one rank, step by step, from a position on."""

from collections import deque
from collections.abc import Iterator
from itertools import islice
from typing import Any, final

import torch

from runner.data.loader import Collate, fetcher, read
from runner.data.order import MicroBatchIndices, Order, StepPlan
from runner.protocols import MicroBatch, StepBatches


@final
class Stream:
    """One rank's steps. `position` counts the items of all ranks that the steps handed out so far consumed."""

    def __init__(
        self,
        dataset: Any,
        order: Order,
        *,
        collate: Collate | None,
        device: torch.device,
        workers: int,
        prefetch: int,
        pinned: bool,
    ) -> None:
        self._dataset = dataset
        self._order = order
        self._collate = collate
        self._device = device
        self._workers = workers
        self._prefetch = prefetch
        self._pinned = pinned
        self.position = 0

    def plan_at(self, position: int) -> StepPlan:
        """What this rank reads of the step that begins there."""
        return next(self._order.steps_from(position))

    def __iter__(self) -> Iterator[StepBatches]:
        return self._ahead() if self._workers else self._here()

    def _here(self) -> Iterator[StepBatches]:
        """Read in the rank itself, when asked: the path of small models, where every microsecond shows."""
        fetch = fetcher(self._dataset, self._collate, self._device)
        for rounds, items, position in self._order.steps_from(self.position):
            self.position = position
            yield StepBatches([MicroBatch(fetch(indices), counted) for indices, counted, _ in rounds], items)

    def _ahead(self) -> Iterator[StepBatches]:
        """Read by workers, ahead of the steps."""
        plans: deque[StepPlan] = deque()
        micro_batches = read(
            self._dataset,
            _shares(self._order.steps_from(self.position), plans),
            collate=self._collate,
            device=self._device,
            workers=self._workers,
            prefetch=self._prefetch,
            pinned=self._pinned,
            seed=self._order.seed,
        )
        for first in micro_batches:
            plan = plans.popleft()
            self.position = plan.position
            yield StepBatches([first, *islice(micro_batches, len(plan.micro_batches) - 1)], plan.items)


def _shares(steps: Iterator[StepPlan], noted: deque[StepPlan]) -> Iterator[MicroBatchIndices]:
    """The shares of all steps; notes each step for whoever gathers its micro-batches, maybe long after."""
    for plan in steps:
        noted.append(plan)
        yield from plan.micro_batches
