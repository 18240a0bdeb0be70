"""Reading the shards of a stream: in the rank itself, or ahead of it in worker processes."""

import os
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol, final

import torch
from torch.utils.data import DataLoader, IterableDataset
from torch.utils.data._utils import worker as torch_worker

from runner.data.loader import BeginWorker, worker_output
from runner.data.shards import BEGINNING, START, Mark, Place, ShardReader
from runner.data.transfer import Sender
from runner.errors import DataError
from runner.protocols import LoaderOptions
from runner.world.seeds import host_generators_kept

SKIP_S = 5.0
"""Seconds of skipping after which it is said how far that is."""


class Reading(Protocol):
    """The shards that one rank reads, in one iteration of a source."""

    def skip(self) -> bool:
        """Go on towards the places to begin at, for some seconds; returns whether they are reached."""
        ...

    @property
    def skipped(self) -> int:
        """Items discarded so far."""
        ...

    def read(self, wanted: Mapping[int, int]) -> dict[int, list[Any]]:
        """The next items of shards, so many of each; fewer if its epoch ends."""
        ...

    def mark(self, shard: int) -> Mark:
        """The last known mark in a shard, at or before the last item read."""
        ...

    def begin_epoch(self, epoch: int) -> None:
        """Go to the beginning of the epoch that follows this one, of which everything was read."""
        ...


@final
class ReadingHere:
    """The rank reads its shards itself, no further than it is asked for."""

    def __init__(self, readers: Mapping[int, ShardReader], epoch: int, places: Mapping[int, Place]) -> None:
        self._readers = readers
        self._places = places
        self._kept = host_generators_kept if any(one.draws for one in readers.values()) else nullcontext
        self.skipped = 0
        with host_generators_kept():
            for number, place in places.items():
                readers[number].begin(epoch, place.mark)

    def skip(self) -> bool:
        """Discard items for some seconds."""
        with host_generators_kept():
            for number, place in self._places.items():
                reader = self._readers[number]
                before = reader.index
                reached = reader.skip(place.items, limit_s=SKIP_S)
                self.skipped += reader.index - before
                if not reached:
                    return False
        return True

    def read(self, wanted: Mapping[int, int]) -> dict[int, list[Any]]:
        """Read them now. The rank's own generators are left as they are."""
        with self._kept():
            return {shard: self._readers[shard].read(num_items) for shard, num_items in wanted.items()}

    def mark(self, shard: int) -> Mark:
        """A mark at the last item, if the stream has a state."""
        return self._readers[shard].mark()

    def begin_epoch(self, epoch: int) -> None:
        """Begin it in every shard."""
        with host_generators_kept():
            for reader in self._readers.values():
                reader.begin(epoch)


@dataclass(frozen=True, kw_only=True)
class _Chunk:
    """What a worker sends: consecutive items of a shard, or that it is still skipping."""

    shard: int
    items: list[Any] = field(default_factory=list)
    mark: Mark = START
    """Before the items."""
    ends: bool = False
    """Whether they are the last of the epoch."""
    skipped: int | None = None
    """Items discarded so far; None = it does not skip."""


@final
class _Chunks(IterableDataset[Any]):
    """Runs in a worker: reads its shards in turn, chunk by chunk and epoch after epoch."""

    def __init__(
        self,
        readers: Mapping[int, ShardReader],
        epoch: int,
        places: Mapping[int, Place],
        *,
        chunk_items: int,
        endless: bool,
    ) -> None:
        self._readers = readers
        self._epoch = epoch
        self._places = places
        self._chunk_items = chunk_items
        self._endless = endless

    def __iter__(self) -> Iterator[_Chunk | DataError]:
        # A stream that finds itself in a worker of torch's divides itself, or shuffles otherwise (Hugging Face). Here a
        # worker reads what the rank would.
        torch_worker._worker_info = None
        try:
            yield from self._epochs()
        except DataError as error:  # raised again in the rank: it explains itself without the worker's traceback
            yield error

    def _epochs(self) -> Iterator[_Chunk]:
        yield from self._rest(self._epoch, self._places)
        while self._endless:
            self._epoch += 1
            yield from self._rest(self._epoch, dict.fromkeys(self._readers, BEGINNING))

    def _rest(self, epoch: int, places: Mapping[int, Place]) -> Iterator[_Chunk]:
        skipped = 0
        for number, place in places.items():
            reader = self._readers[number]
            reader.begin(epoch, place.mark)
            start = reader.index
            while not reader.skip(place.items, limit_s=SKIP_S):
                yield _Chunk(shard=number, skipped=skipped + reader.index - start)
            skipped += reader.index - start
        live = [*places]
        while live:
            for number in tuple(live):
                mark = self._readers[number].mark()
                items = self._readers[number].read(self._chunk_items)
                ends = len(items) < self._chunk_items
                if ends:
                    live.remove(number)
                yield _Chunk(shard=number, items=items, mark=mark, ends=ends)


@final
class _Worker:
    """One worker process, from the rank's point of view."""

    def __init__(self, chunks: _Chunks, options: LoaderOptions) -> None:
        loader: DataLoader[Any] = DataLoader(
            chunks,
            batch_size=None,
            collate_fn=Sender(),
            num_workers=1,
            prefetch_factor=options.prefetch,
            generator=torch.Generator(),  # else it draws from the rank's own
            worker_init_fn=BeginWorker(os.getpid()),
        )
        self._output = worker_output(loader)
        self.skipped = 0
        self.skips = True
        """Whether it has not sent items yet."""

    def receive(self) -> _Chunk:
        """The next chunk that it sent."""
        chunk: _Chunk = next(self._output)
        if chunk.skipped is None:
            self.skips = False
        else:
            self.skipped = chunk.skipped
        return chunk


@final
class _Shard:
    """What has come of a shard, and how much of it was read."""

    def __init__(self, worker: _Worker, mark: Mark) -> None:
        self.worker = worker
        self.inbox: deque[_Chunk] = deque()
        self.ended = False
        self.mark = mark
        """Before the items that follow."""
        self.items: deque[Any] = deque()
        self.marks: deque[tuple[int, Mark]] = deque()
        """How many of the items come before each later mark."""

    def open_next(self) -> None:
        """Have the items of a chunk come next."""
        chunk = self.inbox.popleft()
        self.marks.append((len(self.items), chunk.mark))
        self.items += chunk.items
        self.ended = chunk.ends

    def take(self, num_items: int) -> list[Any]:
        """The next items, or as many as there are."""
        taken = [self.items.popleft() for _ in range(min(num_items, len(self.items)))]
        passed = [mark for before, mark in self.marks if before <= len(taken)]
        self.mark = passed[-1] if passed else self.mark
        self.marks = deque((before - len(taken), mark) for before, mark in self.marks if before > len(taken))
        return taken


@final
class ReadingAhead:
    """Workers read the shards of a rank, each its own, as far ahead as `loader.prefetch` says."""

    def __init__(
        self,
        readers: Mapping[int, ShardReader],
        epoch: int,
        places: Mapping[int, Place],
        options: LoaderOptions,
        *,
        chunk_items: int,
        endless: bool,
    ) -> None:
        numbers = [*readers]
        num_workers = min(options.workers, len(numbers))
        self._workers: list[_Worker] = []
        self._shards: dict[int, _Shard] = {}
        for first in range(num_workers):
            mine = numbers[first::num_workers]
            chunks = _Chunks(
                {number: readers[number] for number in mine},
                epoch,
                {number: places[number] for number in mine if number in places},
                chunk_items=chunk_items,
                endless=endless,
            )
            reader = _Worker(chunks, options)
            self._workers.append(reader)
            for number in mine:
                self._shards[number] = _Shard(reader, places.get(number, BEGINNING).mark)
        self._reading = {self._shards[number].worker for number in places}

    @property
    def skipped(self) -> int:
        """Items that the workers have discarded, as far as they have said."""
        return sum(worker.skipped for worker in self._workers)

    def skip(self) -> bool:
        """Wait until a worker says how far it is, or all have sent items."""
        for worker in self._reading:
            while worker.skips:
                before = worker.skipped
                self._receive(worker)
                if worker.skips and worker.skipped > before:
                    return False
        return True

    def read(self, wanted: Mapping[int, int]) -> dict[int, list[Any]]:
        """Items that have come, or will."""
        return {shard: self._read(shard, num_items) for shard, num_items in wanted.items()}

    def _read(self, shard: int, num_items: int) -> list[Any]:
        one = self._shards[shard]
        while len(one.items) < num_items and not one.ended:
            while not one.inbox:
                self._receive(one.worker)
            one.open_next()
        return one.take(num_items)

    def _receive(self, worker: _Worker) -> None:
        chunk = worker.receive()
        if chunk.skipped is None:
            self._shards[chunk.shard].inbox.append(chunk)

    def mark(self, shard: int) -> Mark:
        """The mark before the chunk of the last item read, or after it."""
        return self._shards[shard].mark

    def begin_epoch(self, epoch: int) -> None:
        """The workers have gone on to it by themselves."""
        for shard in self._shards.values():
            shard.ended, shard.mark = False, START
            shard.marks.clear()
