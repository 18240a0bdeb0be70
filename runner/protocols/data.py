"""Where training steps come from: an order of indexed items, or a stream of the user's own."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

from runner.protocols.step import StepBatches
from runner.protocols.world import World

if TYPE_CHECKING:
    import numpy
    import torch
    from numpy.typing import NDArray


class Order(Protocol):
    """In which order the items of each epoch are read: a pure function, the same on every rank."""

    @property
    def num_items(self) -> int:
        """Items of one epoch."""
        ...

    def indices(self, epoch: int, start: int, stop: int) -> "NDArray[numpy.int64]":
        """Indices into the dataset of the items at `start` to `stop` (exclusive) of an epoch: [stop - start]."""
        ...


class MicroBatchIndices(NamedTuple):
    """The items of one micro-batch on one rank."""

    indices: list[int]
    """Into the dataset. Never empty: a rank without items repeats one of the step's, so that it takes part."""
    items: int
    """How many of them count: all, or 0 for a filler."""
    epoch: int


class StepPlan(NamedTuple):
    """The items of one optimizer step on one rank."""

    micro_batches: list[MicroBatchIndices]
    items: int
    """Of the whole step, over all ranks and micro-batches."""
    position: int
    """Items consumed once this step is done, over all epochs."""


class Source(Protocol):
    """The training steps of one rank. A source never ends: after the last item, the next epoch begins."""

    @property
    def position(self) -> int:
        """Items that the steps handed out so far consumed, over all ranks. The same on every rank."""
        ...

    def __iter__(self) -> Iterator[StepBatches]:
        """Every step from the present state on. Each rank gets as many micro-batches as the others.

        Called again after `load_state_dict`; older iterators are not used any more.
        """
        ...

    def state_dict(self) -> dict[str, Any]:
        """The state after the last step handed out, as JSON can hold it. Collective.

        It must be the same on every rank: gather what differs.
        """
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a state, perhaps one that another number of ranks saved.

        Raises:
            CheckpointError: the state is not one of this source's.
        """
        ...


@runtime_checkable
class IndexedSteps(Protocol):
    """A source whose items have an index, so that those of any step can be named."""

    def plan_at(self, position: int) -> StepPlan:
        """The items of this rank in the step that begins at a position."""
        ...


@dataclass(frozen=True, kw_only=True)
class LoaderOptions:
    """How items become batches on the device."""

    collate: Callable[[list[Any]], Any]
    """Items of one micro-batch to a batch."""
    device: "torch.device"
    """Where batches go."""
    workers: int
    """Processes that read items ahead; 0 = the rank itself reads them."""
    prefetch: int
    """Micro-batches that each worker keeps ready."""
    pin_memory: bool
    """Whether workers leave batches in page-locked memory, from which the device copies without waiting."""


@dataclass(frozen=True, kw_only=True)
class SourceRequest:
    """What a run asks of its source."""

    step_items: int
    """Items of one optimizer step, over all ranks."""
    micro_items: int
    """Items of one micro-batch at most."""
    world: World
    """The ranks that read different items: this one is `world.rank` of `world.size`."""
    seed: int
    """`run.seed`."""
    shuffle: bool
    """`loader.shuffle`."""
    loader: LoaderOptions
    """How items become batches on the device."""


@runtime_checkable
class OpensSource(Protocol):
    """Training data that makes its own steps, in place of a map-style dataset."""

    def open_source(self, request: SourceRequest) -> Source:
        """A source at its beginning. May be called several times; sources do not affect one another. Collective."""
        ...
