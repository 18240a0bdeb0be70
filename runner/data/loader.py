"""Reading items: in the rank itself, or ahead of it by worker processes."""

import random
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol, final, runtime_checkable

import numpy
import torch
from torch.utils.data import DataLoader, default_collate

from runner.data.order import MicroBatchIndices
from runner.errors import DataError
from runner.protocols import MicroBatch
from runner.world.seeds import mix

Collate = Callable[[list[Any]], Any]


@runtime_checkable
class ReadsMany(Protocol):
    """A dataset that reads several items at once, as torch's own loader also asks."""

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


def num_items(dataset: Any, name: str) -> int:
    """The length of a map-style dataset.

    Raises:
        DataError: it has none, or is empty.
    """
    try:
        length = len(dataset)
    except TypeError:
        kind = type(dataset).__name__
        raise DataError(
            f"the data hook's {name!r} dataset ({kind}) has no length: its order could not be resumed. "
            "Return a map-style dataset, with __len__ and __getitem__."
        ) from None
    if length == 0:
        raise DataError(f"the data hook's {name!r} dataset is empty. Return at least one item.")
    return length


def read(
    dataset: Any,
    shares: Iterable[MicroBatchIndices],
    *,
    collate: Collate | None,
    device: torch.device,
    workers: int,
    prefetch: int,
    pinned: bool,
    seed: int,
) -> Iterator[MicroBatch]:
    """Micro-batches of these shares, in order, on the device.

    Args:
        workers: processes that read ahead; 0 reads in this process, when asked.
        prefetch: micro-batches that each worker keeps ready.
        pinned: workers leave their batches in page-locked memory.
        seed: what random numbers drawn while an item is read depend on, besides the item's index. Only in workers:
            in the rank itself they come from its own generators, which checkpoints keep.
    """
    if workers == 0:
        fetch = fetcher(dataset, collate, device)
        return (MicroBatch(fetch(share.indices), share.items) for share in shares)
    counted: deque[int] = deque()
    loader: DataLoader[Any] = DataLoader(
        _SeededItems(dataset, seed),  # type: ignore[arg-type]  # it has what torch asks of a Dataset
        batch_sampler=_Indices(shares, counted, len(dataset)),
        collate_fn=collate or default_collate,
        num_workers=workers,
        prefetch_factor=prefetch,
        pin_memory=pinned,
        generator=torch.Generator(),  # else it draws from the rank's own
    )
    return (MicroBatch(to_device(batch, device, non_blocking=pinned), counted.popleft()) for batch in loader)


def fetcher(dataset: Any, collate: Collate | None, device: torch.device) -> Callable[[list[int]], Any]:
    """From a share's indices to its batch; by `__getitems__` where there is one, as torch's own fetcher does."""
    collate = collate or default_collate
    if isinstance(dataset, ReadsMany):
        get_many = dataset.__getitems__
    else:
        get_one = dataset.__getitem__

        def get_many(indices: list[int]) -> list[Any]:
            return [get_one(index) for index in indices]

    if device == torch.device("cpu"):  # where it is read
        return lambda indices: collate(get_many(indices))
    return lambda indices: to_device(collate(get_many(indices)), device, non_blocking=False)


def to_device(batch: Any, device: torch.device, *, non_blocking: bool) -> Any:
    """A nested batch with every tensor in it moved; whatever is no tensor stays as it is."""
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
class _Indices:
    """The shares as a batch sampler; notes how many items of each count, for the reader at the other end."""

    def __init__(self, shares: Iterable[MicroBatchIndices], counted: deque[int], num_items: int) -> None:
        self._shares = shares
        self._num_items = num_items
        self._counted = counted

    def __iter__(self) -> Iterator[list[int]]:
        for share in self._shares:
            self._counted.append(share.items)
            yield [share.epoch * self._num_items + index for index in share.indices]


@final
class _SeededItems:
    """A dataset, indexed by epoch × length + index, whose random numbers depend on just that.

    So it matters neither which worker reads an item nor what it read before. A dataset that reads many at once draws
    for all of them from its first.
    """

    def __init__(self, dataset: Any, seed: int) -> None:
        self._dataset = dataset
        self._num_items = len(dataset)
        self._seed = seed
        self._read_many = isinstance(dataset, ReadsMany)

    def __getitems__(self, keys: list[int]) -> list[Any]:
        if self._read_many:
            self._seed_for(keys[0])
            many: list[Any] = self._dataset.__getitems__([key % self._num_items for key in keys])
            return many
        return [self._read(key) for key in keys]

    def _read(self, key: int) -> Any:
        self._seed_for(key)
        return self._dataset[key % self._num_items]

    def _seed_for(self, key: int) -> None:
        seed = mix(self._seed, key)
        random.seed(seed)
        numpy.random.seed(seed % 2**32)
        torch.manual_seed(seed)
