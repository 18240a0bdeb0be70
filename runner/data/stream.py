"""The training items of one rank, step by step, from a position on."""

from collections.abc import Iterator
from itertools import tee
from typing import Any, final

import torch

from runner.data.loader import Collate, read
from runner.data.order import Order
from runner.protocols import Batches


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

    def __iter__(self) -> Iterator[Batches]:
        plans, ahead = tee(self._order.steps_from(self.position))
        micro_batches = read(
            self._dataset,
            (share for plan in ahead for share in plan.rounds),
            collate=self._collate,
            device=self._device,
            workers=self._workers,
            prefetch=self._prefetch,
            pinned=self._pinned,
            seed=self._order.seed,
        )
        for plan in plans:
            rounds = [next(micro_batches) for _ in plan.rounds]
            self.position = plan.position
            yield Batches(rounds, plan.items)
