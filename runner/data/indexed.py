"""Steps of a map-style dataset, read in an order."""

from collections import deque
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any, Protocol, final

from runner.data.loader import fetch_function, load
from runner.data.state import check_state
from runner.protocols import MicroBatch, MicroBatchIndices, SourceRequest, StepBatches, StepPlan

POSITION = "position"


class Steps(Protocol):
    """Which items of a dataset make each step."""

    def starting_at(self, position: int) -> Iterator[StepPlan]:
        """Every step from a position on, without end."""
        ...


class AroundItems:
    """A source whose steps an IndexedSource reads, with a state of its own. A base class: a subclass sets `_items`."""

    _items: "IndexedSource"

    @property
    def position(self) -> int:
        """Items of the steps returned so far."""
        return self._items.position

    def __iter__(self) -> Iterator[StepBatches]:
        return iter(self._items)

    def plan_at(self, position: int) -> StepPlan:
        """The items of this rank in the step that begins at a position."""
        return self._items.plan_at(position)


@final
class IndexedSource:
    """One rank's steps of a map-style dataset. The position is all of its state."""

    def __init__(self, dataset: Any, steps: Steps, request: SourceRequest) -> None:
        self._dataset = dataset
        self._steps = steps
        self._options = request.loader
        self._seed = request.seed
        self.position = 0

    def plan_at(self, position: int) -> StepPlan:
        """The items of this rank in the step that begins at a position."""
        return next(self._steps.starting_at(position))

    def state_dict(self) -> dict[str, Any]:
        """The position."""
        return {POSITION: self.position}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue at a position, with any number of ranks."""
        check_state(state, {POSITION}, of="a map-style dataset")
        self.position = state[POSITION]

    def __iter__(self) -> Iterator[StepBatches]:
        return self._ahead() if self._options.workers else self._in_rank()

    def _in_rank(self) -> Iterator[StepBatches]:
        """Items are read by the rank itself, on demand: the path of small models, where every microsecond shows."""
        fetch = fetch_function(self._dataset, self._options, seed=self._seed)
        for micro_batches, items, position in self._steps.starting_at(self.position):
            self.position = position
            yield StepBatches(
                [MicroBatch(fetch(indices, epoch), counted) for indices, counted, epoch in micro_batches], items
            )

    def _ahead(self) -> Iterator[StepBatches]:
        """Items are read by workers, ahead of the steps."""
        plans: deque[StepPlan] = deque()
        micro_batches = load(
            self._dataset,
            _noting(self._steps.starting_at(self.position), plans),
            self._options,
            seed=self._seed,
        )
        for first in micro_batches:
            plan = plans.popleft()
            self.position = plan.position
            yield StepBatches([first, *islice(micro_batches, len(plan.micro_batches) - 1)], plan.items)


def _noting(steps: Iterator[StepPlan], plans: deque[StepPlan]) -> Iterator[MicroBatchIndices]:
    """The micro-batches of all steps; notes each step for the reader, who may be many steps behind."""
    for plan in steps:
        plans.append(plan)
        yield from plan.micro_batches
