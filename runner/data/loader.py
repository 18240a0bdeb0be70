"""Loading items: in the rank itself, or ahead of it by worker processes."""

import os
import re
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from typing import Any, final

import torch
from torch.utils.data import DataLoader, default_collate
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from runner.data.collate import collate_in_worker, collated
from runner.data.gather import Gather, gather_function
from runner.data.seeded import SeededItems, read_function
from runner.data.transfer import Sender
from runner.errors import DataError
from runner.protocols import LoaderOptions, MicroBatch, MicroBatchIndices
from runner.world.parent import end_with_parent
from runner.world.seeds import host_generators_kept

DIED = re.compile(r"DataLoader worker \(pid.*(killed by signal|exited unexpectedly)")
"""What torch says of a worker that ended without an error of its own."""
WAY_OUT = (
    "A loader worker died while it read items. If it was killed, memory usually ran out: lower loader.workers or "
    "loader.prefetch. With loader.workers=0 the rank reads the items itself, and its log shows where native code fails."
)


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
            _SeededBatches(dataset, options.collate, seed=seed),  # type: ignore[arg-type]  # it has what torch asks for
            batch_sampler=_Requests(micro_batches, self._counts),  # type: ignore[arg-type]
            collate_fn=Sender(),
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
    outputs = iter(loader)
    assert isinstance(outputs, _MultiProcessingDataLoaderIter)
    try:
        for output in outputs:
            if isinstance(output, DataError):
                raise output
            yield output
    except Exception as error:
        # The error holds the iterator: garbage collection would end both, but first the queues by which workers end.
        outputs._shutdown_workers()
        if DIED.search(str(error)):
            error.add_note(WAY_OUT)
        raise


def fetch_function(dataset: Any, options: LoaderOptions, *, seed: int) -> Callable[[list[int], int], Any]:
    """From indices and their epoch to the batch on the device.

    A rank that reads for others seeds each item as workers do, and leaves its own generators as they are.
    """
    if options.reads_for > 1:
        return _SeededBatches(dataset, options.collate, seed=seed).fetch_for_others
    move, get_batch = options.move, _batch_function(dataset, options.collate)
    if move is None:
        return lambda indices, epoch: get_batch(indices)
    return lambda indices, epoch: move(get_batch(indices))


def _batch_function(dataset: Any, collate: Callable[[list[Any]], Any]) -> Callable[[list[int]], Any]:
    gather = _gather_function(dataset, collate)
    if gather is not None:
        return gather
    get_many = read_function(dataset)
    return lambda indices: collated(collate, get_many(indices), indices=indices)


def _gather_function(dataset: Any, collate: Callable[[list[Any]], Any]) -> Gather | None:
    return gather_function(dataset) if collate is default_collate else None


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
class _Requests:
    """What torch's loader sends to its workers, in the place of a batch sampler's indices.

    Notes how many items of each micro-batch count, for whoever reads the batches.
    """

    def __init__(self, micro_batches: Iterable[MicroBatchIndices], counts: deque[int]) -> None:
        self._micro_batches = micro_batches
        self._counts = counts

    def __iter__(self) -> Iterator[tuple[list[int], int]]:
        self._counts.clear()
        for indices, items, epoch in self._micro_batches:
            self._counts.append(items)
            yield indices, epoch


@final
class _SeededBatches:
    """Batches of items whose random numbers depend on the item and its epoch alone."""

    def __init__(self, dataset: Any, collate: Callable[[list[Any]], Any], *, seed: int) -> None:
        self._dataset = dataset
        self._collate = collate
        self._seed = seed

    @cached_property
    def _fetch(self) -> Callable[[list[int], int], Any]:
        """Made where it is used: a worker may be a new interpreter, which functions cannot be sent to."""
        gather = _gather_function(self._dataset, self._collate)
        if gather is not None:
            return lambda indices, epoch: gather(indices)
        collate = collate_in_worker if self._collate is default_collate else self._collate
        items = SeededItems(self._dataset, seed=self._seed)
        return lambda indices, epoch: collated(collate, items.read(indices, epoch), indices=indices)

    def __getitems__(self, request: tuple[list[int], int]) -> Any:
        """In a worker: what torch's loader asks of a dataset."""
        try:
            return self._fetch(*request)
        except DataError as error:  # raised again in the rank: it explains itself without the worker's traceback
            return error

    def fetch_for_others(self, indices: list[int], epoch: int) -> Any:
        """In the rank: the batch that a worker makes. Its own generators are left as they are."""
        with host_generators_kept():
            return self._fetch(indices, epoch)
