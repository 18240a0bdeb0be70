"""loader.source=rank_0: rank 0 reads, and hands each rank the micro-batches that it would have read itself."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import islice
from typing import Any, final

import torch
from torch import Tensor

from runner.data.loader import placed
from runner.data.wire import packed_message, unpacked_message
from runner.errors import DataError
from runner.protocols import IndexedSteps, LoaderOptions, MicroBatch, Source, StepBatches, StepPlan, World

__all__ = ["Dispatch", "DispatchedSource", "for_all_ranks", "in_rounds"]

OWN = torch.empty(0, dtype=torch.uint8)
"""What rank 0 sends to itself."""


def for_all_ranks(options: LoaderOptions, ranks: int) -> LoaderOptions:
    """How rank 0 loads what it hands out: micro-batches of all ranks, which stay on the host until they are where they
    are needed.
    """
    return replace(options, device=torch.device("cpu"), move=None, pin_memory=False, reads_for=ranks)


def in_rounds(micro_batches: Iterator[MicroBatch], ranks: int) -> Iterator[StepBatches]:
    """Single micro-batches of all ranks, one of each at a time."""
    while together := [*islice(micro_batches, ranks)]:
        yield StepBatches(together, sum(one.items for one in together))


@final
class Dispatch:
    """Hands out micro-batches that rank 0 has read."""

    def __init__(self, world: World, options: LoaderOptions) -> None:
        """Among these ranks.

        Args:
            options: how a rank puts on its device what it got.
        """
        self._world = world
        self._options = options

    def hand_out(self, steps: Iterable[StepBatches]) -> Iterator[StepBatches]:
        """This rank's part of each step. Collective, and so is each step.

        Args:
            steps: on rank 0, those of all ranks, round by round. What other ranks bring is not looked at.

        Raises:
            DataError: the micro-batches of a step cannot be divided among the ranks, or not be sent.
        """
        if self._world.rank:
            while (step := self._unpacked(self._world.scatter(None))) is not None:
                yield step
            return
        ranks = self._world.size
        for step in steps:
            self._check(step)
            of_ranks = [StepBatches(step.micro_batches[rank::ranks], step.items) for rank in range(ranks)]
            self._world.scatter([OWN, *map(packed_message, of_ranks[1:])])
            yield self._placed(of_ranks[0])
        self._world.scatter([packed_message(None)] * ranks)

    def _check(self, step: StepBatches) -> None:
        counted = sum(one.items for one in step.micro_batches)
        if len(step.micro_batches) % self._world.size or counted != step.items:
            raise DataError(
                f"loader.source=rank_0: a step of {step.items} items came in {len(step.micro_batches)} micro-batches "
                f"with {counted} items, for {self._world.size} ranks. A source of its own must make those of all "
                "ranks, as runner.data.stream.step_batches does. Use that, or loader.source=each_rank."
            )

    def _unpacked(self, message: Tensor) -> StepBatches | None:
        step: StepBatches | None = unpacked_message(message.pin_memory() if self._options.pin_memory else message)
        return step if step is None else self._placed(step)

    def _placed(self, step: StepBatches) -> StepBatches:
        return StepBatches([placed(one, self._options) for one in step.micro_batches], step.items)


@final
class DispatchedSource:
    """One rank's steps of a source that rank 0 reads for all."""

    def __init__(self, source: Source, world: World, options: LoaderOptions) -> None:
        """Of a source which every rank has opened, but only rank 0 iterates over.

        Args:
            source: makes the micro-batches of all ranks.
        """
        self._source = source
        self._world = world
        self._dispatch = Dispatch(world, options)
        self.position = source.position

    def __iter__(self) -> Iterator[StepBatches]:
        for step in self._dispatch.hand_out(self._source):
            self.position += step.items
            yield step

    def plan_at(self, position: int) -> StepPlan | None:
        """The items of this rank in the step that begins at a position."""
        plan = self._source.plan_at(position) if isinstance(self._source, IndexedSteps) else None
        if plan is None:
            return None
        return plan._replace(micro_batches=plan.micro_batches[self._world.rank :: self._world.size])

    def state_dict(self) -> dict[str, Any]:
        """That of rank 0's source. Collective."""
        state: dict[str, Any] = self._world.broadcast_object({} if self._world.rank else self._source.state_dict())
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a state."""
        self._source.load_state_dict(state)
        self.position = self._source.position
