"""The shards of a stream: how a dataset is divided into them, and reading one of them from any place."""

import time
from collections.abc import Iterable, Iterator
from copy import copy
from dataclasses import dataclass, replace
from inspect import signature
from itertools import islice
from typing import Any, Protocol, final, runtime_checkable

from runner.errors import CheckpointError, DataError
from runner.world.seeds import DrawWatch, host_generators_kept, mix, mix_each, seed_host

DEFAULT_SHARDS = 16
"""Shards of a stream that can be divided into more, up to 16 data ranks: their number must not depend on the ranks."""


@runtime_checkable
class DividesItself(Protocol):
    """A stream that gives a part of itself: `shard(rank, ranks)`, or Hugging Face's `shard(num_shards, index)`."""

    def shard(self, rank: int, ranks: int, /) -> Iterable[Any]:
        """The part of one of several readers, who read each item once between them."""
        ...


@runtime_checkable
class CountsShards(Protocol):
    """A stream that says into how many parts it can be divided."""

    @property
    def num_shards(self) -> int:
        """The most parts of which none is empty."""
        ...


@runtime_checkable
class Stateful(Protocol):
    """A stream that continues from a state, as those of Hugging Face datasets and torchdata do."""

    def state_dict(self) -> dict[str, Any]:
        """The state after the last item handed out."""
        ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Begin the next iteration after that item."""
        ...


@runtime_checkable
class HasEpochs(Protocol):
    """A stream whose order depends on the epoch."""

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next iteration."""
        ...


@final
@dataclass(frozen=True, kw_only=True)
class Sharding:
    """How a stream is divided among the ranks that read different items."""

    num_shards: int
    """How many shards it has; 1 = it is not divided, so every rank reads all items and keeps its own."""
    declared: int | None = None
    """What the stream says that it can be divided into."""
    divided: bool = False
    """Whether each shard is read by one rank only."""

    def own(self, rank: int, ranks: int) -> range:
        """The shards that a rank reads."""
        return range(rank, self.num_shards, ranks) if self.divided else range(self.num_shards)

    def continued(self, num_shards: int, *, declared: int | None, name: str, ranks: int) -> "Sharding":
        """As a run began with, which continues with it whatever its number of ranks.

        Args:
            num_shards: of the run so far.
            declared: by the stream of the run so far.

        Raises:
            CheckpointError: the stream is another.
            DataError: there are too few shards for the ranks.
        """
        if declared != self.declared or (num_shards > 1 and not self.divided):
            raise CheckpointError(
                f"the checkpoint is of a {name!r} stream with {_counted(declared, num_shards)}, but this run's has "
                f"{_counted(self.declared, self.num_shards)}: its items would come in another order. Resume with the "
                "data that the run began with, or start a new run."
            )
        if self.divided and num_shards < ranks:
            raise DataError(
                f"the run began with its {name!r} stream in {num_shards} shards, fewer than the {ranks} data ranks "
                f"that continue it. Use at most {num_shards}."
            )
        return replace(self, num_shards=num_shards)


def _counted(declared: int | None, num_shards: int) -> str:
    return f"{num_shards} shards" if declared is None else f"num_shards={declared}"


def sharding_of(stream: Any, name: str, *, ranks: int, by_itself: bool = True) -> Sharding:
    """How a stream is divided: by itself if it can and may, else by the index of its items.

    Raises:
        DataError: it divides itself, but into fewer shards than there are ranks.
    """
    if not by_itself or not isinstance(stream, DividesItself):
        return Sharding(num_shards=1)
    declared = stream.num_shards if isinstance(stream, CountsShards) else None
    wanted = max(DEFAULT_SHARDS, ranks)
    sharding = Sharding(
        num_shards=wanted if declared is None else min(declared, wanted), declared=declared, divided=True
    )
    if sharding.num_shards < ranks:
        raise DataError(
            f"the data hook's {name!r} stream ({type(stream).__name__}) has num_shards={declared}, fewer than the "
            f"{ranks} data ranks, so some would have nothing to read. Write it into more shards, use at most "
            f"{declared} data ranks, or return runner.data.stream.Stream(dataset, shard=False), of which every rank "
            "reads all items and keeps its own."
        )
    return sharding


def shards_of(stream: Any, sharding: Sharding, numbers: Iterable[int]) -> dict[int, Any]:
    """Some shards of a stream, by number."""
    if not sharding.divided:
        return dict.fromkeys(numbers, stream)
    if {"num_shards", "index"} <= signature(stream.shard).parameters.keys():
        return {number: stream.shard(num_shards=sharding.num_shards, index=number) for number in numbers}
    return {number: stream.shard(number, sharding.num_shards) for number in numbers}


@final
@dataclass(frozen=True)
class Mark:
    """A place in an epoch of a shard, from which reading can go on."""

    items: int = 0
    """Items before it."""
    state: dict[str, Any] | None = None
    """The stream's own state there; None = it is the beginning, or the stream has no state."""


START = Mark()


@final
@dataclass(frozen=True)
class Place:
    """How far a shard has been read in an epoch."""

    items: int = 0
    """Items read."""
    mark: Mark = START
    """The last mark before. What lies between is read again and discarded."""


BEGINNING = Place()


@final
class ShardReader:
    """Reads a shard, epoch after epoch.

    Random numbers that the stream draws depend on seed, epoch, shard and item alone. What it draws before its first
    item, for instance to shuffle its files, depends on the epoch: it is the same on all ranks, and after resuming.

    A stream that is said not to draw is read without seeding, but for a check when its reading begins.
    """

    def __init__(self, stream: Any, number: int, *, seed: int, use_state: bool = True, draws: bool = True) -> None:
        has_state = use_state and isinstance(stream, Stateful)
        # A copy: what another iteration was told to begin with does not matter to this one.
        self._stream = copy(stream) if has_state else stream
        self._has_state = has_state
        self._number = number
        self._seed = seed
        self.draws = draws
        """Whether the generators are seeded for each item."""
        self._epoch_seed = 0
        self._items: Iterator[Any] | None = None
        self._mark = START
        self.index = 0
        """Items read of this epoch."""

    def begin(self, epoch: int, mark: Mark = START) -> None:
        """Go to a mark in an epoch; to the epoch's beginning if the stream cannot take the mark's state."""
        if isinstance(self._stream, HasEpochs):
            self._stream.set_epoch(epoch)
        if mark.state is not None and self._has_state:
            self._stream.load_state_dict(mark.state)
            self._mark = mark
        else:
            self._mark = START
        self._epoch_seed, self._items, self.index = mix(self._seed, epoch, self._number), None, self._mark.items

    def read(self, num_items: int) -> list[Any]:
        """The next items; fewer if the epoch ends.

        Raises:
            DataError: the stream has drawn, which it was said not to do.
        """
        if self.draws:
            found = self._read_seeded(num_items)
        elif self._items is not None:
            found = [*islice(self._items, num_items)]
        else:
            found = self._first_undrawn(num_items)
        self.index += len(found)
        return found

    def _read_seeded(self, num_items: int) -> list[Any]:
        found: list[Any] = []
        for seed in mix_each(self._epoch_seed, self.index, range(num_items)):
            if self._items is None:
                seed_host(self._epoch_seed)
                self._items = iter(self._stream)
            else:
                seed_host(seed)
            try:
                found.append(next(self._items))
            except StopIteration:
                break
        return found

    def _first_undrawn(self, num_items: int) -> list[Any]:
        """As it is read the first time in an epoch."""
        with host_generators_kept():
            watch = DrawWatch(self._epoch_seed)
            watch.begin(torch_seed=self._epoch_seed)
            self._items = iter(self._stream)
            found = [*islice(self._items, num_items)]
            drew = watch.drew()
        if drew:
            raise DataError(
                f"the stream ({type(self._stream).__name__}) drew random numbers, which runner.data.stream.Stream(…, "
                "draws=False) says that it does not: they would not be the same after resuming. Leave draws=False out."
            )
        return found

    def skip(self, until: int, *, limit_s: float) -> bool:
        """Read items and discard them; returns whether this many of the epoch have been read, or time has run out.

        Raises:
            DataError: the epoch has fewer items.
        """
        deadline = time.monotonic() + limit_s
        while self.index < until and time.monotonic() < deadline:
            if not self.read(1):
                raise DataError(
                    f"the stream ({type(self._stream).__name__}) ended after {self.index} items of an epoch of which "
                    f"{until} had been read when the checkpoint was saved. Resume with the data that it began with."
                )
        return self.index >= until

    def mark(self) -> Mark:
        """A mark at the last item read; the last one known if the stream has no state."""
        if self.index > self._mark.items and self._has_state:
            self._mark = Mark(self.index, self._stream.state_dict())
        return self._mark
