"""Loading items: in the rank itself, or ahead of it by worker processes."""

import os
import re
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol, final, runtime_checkable

import torch
from torch.utils.data import DataLoader

from runner.data.collate import collated
from runner.errors import DataError
from runner.protocols import LoaderOptions, MicroBatch, MicroBatchIndices
from runner.world.parent import end_with_parent
from runner.world.seeds import host_generators_kept, mix, seed_host

DIED = re.compile(r"DataLoader worker \(pid.*(killed by signal|exited unexpectedly)")
"""What torch says of a worker that ended without an error of its own."""
WAY_OUT = (
    "A loader worker died while it read items. If it was killed, memory usually ran out: lower loader.workers or "
    "loader.prefetch. With loader.workers=0 the rank reads the items itself, and its log shows where native code fails."
)


@runtime_checkable
class ReadsMany(Protocol):
    """A dataset that reads several items at once; torch's own loader asks for the same method."""

    def __getitems__(self, indices: list[int]) -> list[Any]:
        """The items, in this order."""
        ...


def load(
    dataset: Any, micro_batches: Iterable[MicroBatchIndices], options: LoaderOptions, *, seed: int
) -> Iterator[MicroBatch]:
    """Load micro-batches, in order, onto the device.

    Args:
        seed: what random numbers drawn while an item is read depend on, besides epoch and index. Only in workers, and
            where a rank reads for others: in the rank itself they come from its own generators, which checkpoints keep.
    """
    if options.workers:
        return iter(WorkerLoader(dataset, micro_batches, options, seed=seed))
    fetch = fetch_function(dataset, options, seed=seed)
    return (MicroBatch(fetch(indices, epoch), items) for indices, items, epoch in micro_batches)


@final
class WorkerLoader:
    """Micro-batches that worker processes load. With `persistent_workers`, the same ones load them again."""

    def __init__(
        self, dataset: Any, micro_batches: Iterable[MicroBatchIndices], options: LoaderOptions, *, seed: int
    ) -> None:
        self._options = options
        self._counts: deque[int] = deque()
        self._loader: DataLoader[Any] = DataLoader(
            _SeededItems(dataset, options.collate, seed),  # type: ignore[arg-type]  # it has what torch asks of a Dataset
            batch_sampler=_KeySampler(micro_batches, self._counts, len(dataset)),
            collate_fn=as_it_is,
            num_workers=options.workers,
            prefetch_factor=options.prefetch,
            pin_memory=options.pin_memory,
            generator=torch.Generator(),  # else it draws from the rank's own
            worker_init_fn=BeginWorker(os.getpid()),
            persistent_workers=options.persistent_workers,
        )

    def __iter__(self) -> Iterator[MicroBatch]:
        for batch in worker_output(self._loader):
            yield placed(MicroBatch(batch, self._counts.popleft()), self._options)


def worker_output(loader: DataLoader[Any]) -> Iterator[Any]:
    """What the loader's workers hand out.

    Raises:
        DataError: no batch can be made of what a worker read.
        RuntimeError: a worker died. An error that it raised comes as it is, with the worker's own traceback.
    """
    try:
        for output in loader:
            if isinstance(output, DataError):
                raise output
            yield output
    except RuntimeError as error:
        if DIED.search(str(error)):
            error.add_note(WAY_OUT)
        raise


def as_it_is(value: Any) -> Any:
    """Collate nothing: workers hand out what is collated already."""
    return value


def fetch_function(dataset: Any, options: LoaderOptions, *, seed: int) -> Callable[[list[int], int], Any]:
    """From indices and their epoch to the batch on the device; by `__getitems__` where there is one, as in torch.

    A rank that reads for others seeds each item as workers do, and leaves its own generators as they are.
    """
    collate, move = options.collate, options.move
    if options.reads_for > 1:
        return _SeededItems(dataset, collate, seed).fetch_for_others
    if isinstance(dataset, ReadsMany):
        get_many = dataset.__getitems__
    else:
        get_one = dataset.__getitem__

        def get_many(indices: list[int]) -> list[Any]:
            return [get_one(index) for index in indices]

    if move is None:
        return lambda indices, epoch: collated(collate, get_many(indices), indices=indices)
    return lambda indices, epoch: move(collated(collate, get_many(indices), indices=indices))


def micro_batch(items: list[Any], counted: int, options: LoaderOptions) -> MicroBatch:
    """The micro-batch of items without an index, on the device."""
    return placed(MicroBatch(collated(options.collate, items), counted), options)


def placed(micro_batch: MicroBatch, options: LoaderOptions) -> MicroBatch:
    """A micro-batch on the device."""
    return micro_batch if options.move is None else MicroBatch(options.move(micro_batch.batch), micro_batch.items)


@final
class BeginWorker:
    """Called first in each worker: it ends with its rank, at once, and only with it.

    Torch's own watchdog notices a rank that died after 5 s. SIGTERM to the whole tree (systemd, Slurm) must reach the
    rank, which ends its step; a worker that died of it would fail the step instead.
    """

    def __init__(self, rank_pid: int) -> None:
        self._rank_pid = rank_pid

    def __call__(self, worker: int) -> None:
        """Begin."""
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        end_with_parent(self._rank_pid)


@final
class _KeySampler:
    """Micro-batches as a batch sampler of keys; notes how many items of each count, for whoever reads the batches."""

    def __init__(self, micro_batches: Iterable[MicroBatchIndices], counts: deque[int], num_items: int) -> None:
        self._micro_batches = micro_batches
        self._num_items = num_items
        self._counts = counts

    def __iter__(self) -> Iterator[list[int]]:
        self._counts.clear()
        for indices, items, epoch in self._micro_batches:
            self._counts.append(items)
            yield [epoch * self._num_items + index for index in indices]


@final
class _SeededItems:
    """Batches of a dataset's items, indexed by keys: epoch × length + index. Random numbers depend on the key alone.

    So neither the worker that reads an item matters, nor what it read before. A dataset that reads many items at once
    draws for all of them from the key of the first.
    """

    def __init__(self, dataset: Any, collate: Callable[[list[Any]], Any], seed: int) -> None:
        self._dataset = dataset
        self._collate = collate
        self._num_items = len(dataset)
        self._seed = seed
        self._gets_many = isinstance(dataset, ReadsMany)

    def __getitems__(self, keys: list[int]) -> Any:
        indices = [key % self._num_items for key in keys]
        items = self._get_many(keys, indices)
        try:
            return collated(self._collate, items, indices=indices)
        except DataError as error:  # raised again in the rank: it explains itself without the worker's traceback
            return error

    def fetch_for_others(self, indices: list[int], epoch: int) -> Any:
        """The batch, as a worker makes it."""
        with host_generators_kept():
            batch = self.__getitems__([epoch * self._num_items + index for index in indices])
        if isinstance(batch, DataError):
            raise batch
        return batch

    def _get_many(self, keys: list[int], indices: list[int]) -> list[Any]:
        if self._gets_many:
            seed_host(mix(self._seed, keys[0]))
            many: list[Any] = self._dataset.__getitems__(indices)
            return many
        return [self._get(key, index) for key, index in zip(keys, indices, strict=True)]

    def _get(self, key: int, index: int) -> Any:
        seed_host(mix(self._seed, key))
        return self._dataset[index]
