"""Where training steps come from: a dataset of indexed items in some order, or the user's own stream."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

from runner.protocols.part import Part
from runner.protocols.step import StepBatches
from runner.protocols.world import World

if TYPE_CHECKING:
    import numpy
    import torch
    from numpy.typing import NDArray


@runtime_checkable
class Order(Protocol):
    """The order in which the items of each epoch are read: a pure function, the same on every rank."""

    @property
    def num_items(self) -> int:
        """The number of items in one epoch."""
        ...

    def indices(self, epoch: int, start: int, stop: int) -> "NDArray[numpy.int64]":
        """Indices into the dataset of the items at `start` to `stop` (exclusive) of an epoch: [stop - start]."""
        ...


@runtime_checkable
class BatchSampler(Protocol):
    """What torch calls a batch sampler: it says itself which items make one micro-batch.

    With `set_epoch(epoch)`, it is told the epoch. What it draws from the global generators depends on `run.seed` and
    the epoch. That ranks get the same batches, and that an epoch has each item once, is its own affair.
    """

    def __iter__(self) -> Iterator[list[int]]:
        """The micro-batches of an epoch: indices into the dataset, at most `batch.micro_items`."""
        ...


class Ordering(Part, Protocol):
    """The group `order`: the order in which the items of a map-style dataset are read in training."""

    def build(self, dataset: Any, *, seed: int) -> "Order | BatchSampler":
        """The orders of all epochs, or a batch sampler.

        Args:
            dataset: the training dataset: it has a length, and what else its class has.
            seed: the value of `run.seed`.

        Raises:
            DataError: the dataset does not have what this order needs.
        """
        ...


class MicroBatchIndices(NamedTuple):
    """The items of one micro-batch on one rank."""

    indices: list[int]
    """Indices into the dataset. Never empty: a rank without items repeats one of the step, as a filler."""
    items: int
    """How many of the indices count: all, or 0 for a filler."""
    epoch: int


class StepPlan(NamedTuple):
    """The items of one optimizer step on one rank."""

    micro_batches: list[MicroBatchIndices]
    items: int
    """Items of the whole step, over all ranks and micro-batches."""
    position: int
    """Items consumed after this step, over all epochs."""


class Source(Protocol):
    """The training steps of one rank. A source never ends: after the last item, the next epoch begins."""

    @property
    def position(self) -> int:
        """Items in the steps returned so far, over all ranks. The same on every rank."""
        ...

    def __iter__(self) -> Iterator[StepBatches]:
        """Iterate over steps from the current state on. Every rank gets the same number of micro-batches.

        Called again after `load_state_dict`; older iterators are no longer used.
        """
        ...

    def state_dict(self) -> dict[str, Any]:
        """The state after the last step returned, which JSON must be able to represent. Collective.

        It must be the same on every rank: gather what differs.
        """
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a state, possibly saved by a different number of ranks. Nothing is read yet.

        Raises:
            CheckpointError: the state does not belong to this source.
        """
        ...


@runtime_checkable
class IndexedSteps(Protocol):
    """A source whose items have an index, so that the items of any step can be listed."""

    def plan_at(self, position: int) -> StepPlan | None:
        """This rank's items in the step that begins at a position; None if they have no index after all."""
        ...


@dataclass(frozen=True, kw_only=True)
class LoaderOptions:
    """How items are turned into batches on the device."""

    collate: Callable[[list[Any]], Any]
    """Turns the items of one micro-batch into a batch."""
    device: "torch.device"
    """The device of the rank."""
    workers: int
    """Processes that prefetch items; 0 = the rank reads them itself."""
    prefetch: int
    """Micro-batches that each worker prefetches."""
    pin_memory: bool
    """Whether batches are put in page-locked memory, which allows asynchronous copies to the device."""
    move: Callable[[Any], Any] | None = None
    """From a batch on the host to the same on the device, where it may still be on its way; None = it is there."""
    reads_for: int = 1
    """Ranks for which this process makes micro-batches: itself, or all of them where rank 0 reads for the others."""
    persistent_workers: bool = False
    """Whether workers wait for the next pass over an evaluation set."""


@dataclass(frozen=True, kw_only=True)
class SourceRequest:
    """A run's requirements for its source."""

    step_items: int
    """Items of one optimizer step, over all ranks."""
    micro_items: int
    """Most items in one micro-batch."""
    world: World
    """The ranks that read different items: this one is `world.rank` of `world.size`; alone where it reads for all."""
    seed: int
    """The value of `run.seed`."""
    order: Ordering
    """The option of the group `order`."""
    loader: LoaderOptions
    """How items are turned into batches on the device."""


@runtime_checkable
class OpensSource(Protocol):
    """Training data that provides its own steps, instead of a map-style dataset."""

    def open_source(self, request: SourceRequest) -> Source:
        """Open a source at its beginning. May be called several times; sources are independent. Collective."""
        ...
