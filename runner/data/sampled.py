"""A batch sampler of the user's as a source: it says itself which items make one micro-batch, and in which order."""

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping
from itertools import zip_longest
from typing import Any, final

from runner.data.indexed import AroundItems, IndexedSource
from runner.data.shards import HasEpochs
from runner.data.state import check_state
from runner.data.steps import Parts
from runner.errors import CheckpointError, DataError
from runner.protocols import BatchSampler, MicroBatchIndices, SourceRequest, StepPlan
from runner.world.seeds import host_generators_kept, mix, seed_host

KEYS = {"position", "epoch", "epoch_start"}
"""Of a state."""


@final
class SampledSteps:
    """The steps of a batch sampler: as many of its batches each as a step has micro-batches, over all ranks."""

    def __init__(self, sampler: BatchSampler, request: SourceRequest, *, epoch: int = 0, epoch_start: int = 0) -> None:
        """From an epoch on.

        Args:
            epoch_start: the position at which it begins.
        """
        self._sampler = sampler
        self._parts = Parts.of(request.world, request.loader)
        self._step_batches = request.step_items // request.micro_items
        self._micro_items = request.micro_items
        self._seed = request.seed
        self._first = epoch
        self._starts = [epoch_start]
        """Of this epoch and those after it, as far as they are known."""

    def epoch_at(self, position: int) -> tuple[int, int]:
        """The epoch of the step that ends at a position, and the position at which it begins."""
        place = max(bisect_right(self._starts, position - 1) - 1, 0)
        return self._first + place, self._starts[place]

    def starting_at(self, position: int) -> Iterator[StepPlan]:
        """Every step from a position on, epoch after epoch.

        Raises:
            CheckpointError: no step begins there.
        """
        place = max(bisect_right(self._starts, position) - 1, 0)
        while True:
            epoch, at = self._first + place, self._starts[place]
            batches = self._batches(epoch)
            for first in range(0, len(batches), self._step_batches):
                step = batches[first : first + self._step_batches]
                items = sum(map(len, step))
                if at >= position:
                    yield StepPlan(list(self._divided(step, epoch)), items, at + items)
                at += items
                if at - items < position < at:
                    raise CheckpointError(
                        f"the run is at item {position}, but the batches of the order make a step of items "
                        f"{at - items} to {at}. Resume with the order, batch.items and batch.micro_items that it began "
                        "with, or start a new run."
                    )
            place += 1
            if place == len(self._starts):
                self._starts.append(at)

    def _batches(self, epoch: int) -> list[list[int]]:
        """The micro-batches of an epoch. What the sampler draws depends on run.seed and the epoch alone."""
        if isinstance(self._sampler, HasEpochs):
            self._sampler.set_epoch(epoch)
        with host_generators_kept():
            seed_host(mix(self._seed, epoch))
            batches = [[int(index) for index in batch] for batch in self._sampler]
        sizes = {len(batch) for batch in batches}
        kind = type(self._sampler).__name__
        if 0 in sizes:
            raise DataError(
                f"the batch sampler of the order ({kind}) gave an empty batch in epoch {epoch}: leave it out."
            )
        if len(batches) < self._step_batches:
            raise DataError(
                f"the batch sampler of the order ({kind}) gave {len(batches)} batches in epoch {epoch}, fewer than one "
                f"step of batch.items / batch.micro_items = {self._step_batches}: every step would be short. Lower "
                "batch.items, or give more batches."
            )
        if max(sizes) > self._micro_items:
            raise DataError(
                f"the batch sampler of the order ({kind}) gave a batch of {max(sizes)} items, more than one rank "
                f"forwards at once: batch.micro_items={self._micro_items}. Use batch.micro_items={max(sizes)}, or "
                "smaller batches."
            )
        return batches

    def _divided(self, step: list[list[int]], epoch: int) -> Iterator[MicroBatchIndices]:
        """These ranks' micro-batches; a rank for which none is left in the last round gets a filler."""
        ranks = self._parts.ranks
        rounds = -(-len(step) // ranks)
        for number, batch in enumerate(_filled(step, rounds * ranks)):
            if number % ranks in self._parts.own:
                counts = number < len(step)
                yield MicroBatchIndices(batch if counts else batch[:1], len(batch) if counts else 0, epoch)


def _filled(step: list[list[int]], num: int) -> Iterable[list[int]]:
    return (batch for batch, _ in zip_longest(step, range(num), fillvalue=step[0]))


@final
class SampledSource(AroundItems):
    """The steps of a batch sampler as a source. Its state is the position, and where its epoch began."""

    def __init__(self, dataset: Any, sampler: BatchSampler, request: SourceRequest) -> None:
        self._dataset = dataset
        self._sampler = sampler
        self._request = request
        self._begin(epoch=0, epoch_start=0)

    def _begin(self, *, epoch: int, epoch_start: int) -> None:
        self._steps = SampledSteps(self._sampler, self._request, epoch=epoch, epoch_start=epoch_start)
        self._items = IndexedSource(self._dataset, self._steps, self._request)

    def state_dict(self) -> dict[str, Any]:
        """The position, and the epoch of the last step."""
        epoch, epoch_start = self._steps.epoch_at(self.position)
        return {"position": self.position, "epoch": epoch, "epoch_start": epoch_start}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue at a position."""
        check_state(state, KEYS, of="a dataset by a batch sampler")
        self._begin(epoch=state["epoch"], epoch_start=state["epoch_start"])
        self._items.load_state_dict({"position": state["position"]})
