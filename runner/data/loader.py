"""Loading items: in the rank itself, or ahead of it by worker processes."""

import os
import random
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol, final, runtime_checkable

import numpy
import torch
from torch.utils.data import DataLoader

from runner.protocols import LoaderOptions, MicroBatch, MicroBatchIndices
from runner.world.parent import end_with_parent
from runner.world.seeds import mix


@runtime_checkable
class ReadsMany(Protocol):
    """A dataset that reads several items at once; torch's own loader asks for the same method."""

    def __getitems__(self, indices: list[int]) -> list[Any]:
        """The items, in this order."""
        ...


@runtime_checkable
class Movable(Protocol):
    """A tensor, or a batch object that moves its own tensors (transformers' BatchEncoding)."""

    def to(self, device: torch.device, *, non_blocking: bool) -> Any:
        """On that device."""
        ...


@runtime_checkable
class NamedFields(Protocol):
    """A named tuple."""

    _fields: tuple[str, ...]


def load(
    dataset: Any, micro_batches: Iterable[MicroBatchIndices], options: LoaderOptions, *, seed: int
) -> Iterator[MicroBatch]:
    """Load micro-batches, in order, onto the device.

    Args:
        seed: what random numbers drawn while an item is read depend on, besides epoch and index. Only in workers: in
            the rank itself they come from its own generators, which checkpoints keep.
    """
    if options.workers == 0:
        fetch = fetch_function(dataset, options)
        return (MicroBatch(fetch(indices), items) for indices, items, _ in micro_batches)
    counts: deque[int] = deque()
    loader: DataLoader[Any] = DataLoader(
        _SeededItems(dataset, seed),  # type: ignore[arg-type]  # it has what torch asks of a Dataset
        batch_sampler=_KeySampler(micro_batches, counts, len(dataset)),
        collate_fn=options.collate,
        num_workers=options.workers,
        prefetch_factor=options.prefetch,
        pin_memory=options.pin_memory,
        generator=torch.Generator(),  # else it draws from the rank's own
        worker_init_fn=_BeginWorker(os.getpid()),
    )
    device, pinned = options.device, options.pin_memory
    return (MicroBatch(to_device(batch, device, non_blocking=pinned), counts.popleft()) for batch in loader)


def fetch_function(dataset: Any, options: LoaderOptions) -> Callable[[list[int]], Any]:
    """From indices to their batch on the device; by `__getitems__` where there is one, as torch's own fetcher does."""
    collate, device = options.collate, options.device
    if isinstance(dataset, ReadsMany):
        get_many = dataset.__getitems__
    else:
        get_one = dataset.__getitem__

        def get_many(indices: list[int]) -> list[Any]:
            return [get_one(index) for index in indices]

    if device == torch.device("cpu"):  # the batch is there already
        return lambda indices: collate(get_many(indices))
    return lambda indices: to_device(collate(get_many(indices)), device, non_blocking=False)


def to_device(batch: Any, device: torch.device, *, non_blocking: bool) -> Any:
    """A nested batch with every tensor in it moved; everything else stays as it is."""
    if isinstance(batch, Movable):
        return batch.to(device, non_blocking=non_blocking)
    if isinstance(batch, dict):
        return {key: to_device(value, device, non_blocking=non_blocking) for key, value in batch.items()}
    if isinstance(batch, tuple) and isinstance(batch, NamedFields):
        return type(batch)(*(to_device(value, device, non_blocking=non_blocking) for value in batch))
    if isinstance(batch, list | tuple):
        return type(batch)(to_device(value, device, non_blocking=non_blocking) for value in batch)
    return batch


@final
class _BeginWorker:
    """Called first in each worker: it ends with its rank, at once, and only with it.

    Torch's own watchdog notices a rank that died after 5 s. SIGTERM to the whole tree (systemd, Slurm) must reach the
    rank, which ends its step; a worker that died of it would fail the step instead.
    """

    def __init__(self, rank_pid: int) -> None:
        self._rank_pid = rank_pid

    def __call__(self, worker: int) -> None:
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
        for indices, items, epoch in self._micro_batches:
            self._counts.append(items)
            yield [epoch * self._num_items + index for index in indices]


@final
class _SeededItems:
    """A dataset, indexed by keys: epoch × length + index. Its random numbers depend on the key alone.

    So neither the worker that reads an item matters, nor what it read before. A dataset that reads many items at once
    draws for all of them from the key of the first.
    """

    def __init__(self, dataset: Any, seed: int) -> None:
        self._dataset = dataset
        self._num_items = len(dataset)
        self._seed = seed
        self._gets_many = isinstance(dataset, ReadsMany)

    def __getitems__(self, keys: list[int]) -> list[Any]:
        if self._gets_many:
            self._seed_for(keys[0])
            many: list[Any] = self._dataset.__getitems__([key % self._num_items for key in keys])
            return many
        return [self._get(key) for key in keys]

    def _get(self, key: int) -> Any:
        self._seed_for(key)
        return self._dataset[key % self._num_items]

    def _seed_for(self, key: int) -> None:
        seed = mix(self._seed, key)
        random.seed(seed)
        numpy.random.seed(seed % 2**32)
        # Not torch.manual_seed, which notes for each device that is not in use yet where it was called from: 0.2 ms.
        torch.default_generator.manual_seed(seed)
