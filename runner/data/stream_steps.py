"""Reading a stream's steps: which items a step has, and which of them are this rank's."""

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, final

from runner.data.digest import digest
from runner.data.loader import micro_batch
from runner.data.reading import Reading
from runner.data.rotation import Rotation
from runner.data.shards import Sharding
from runner.data.steps import Parts, cut_items
from runner.errors import DataError
from runner.protocols import LoaderOptions, StepBatches, World

logger = logging.getLogger(__name__)


@final
class StepReader:
    """Reads a rank's part of the steps of an epoch. Every method is collective."""

    def __init__(
        self,
        name: str,
        reading: Reading,
        rotation: Rotation,
        sharding: Sharding,
        *,
        step_items: int,
        micro_items: int,
        world: World,
        options: LoaderOptions,
    ) -> None:
        self._name = name
        self._reading = reading
        self._rotation = rotation
        self._sharding = sharding
        self._own = sharding.own(world.rank, world.size)
        self._parts = Parts.of(world, options)
        self._step_items = step_items
        self._micro_items = micro_items
        self._world = world
        self._options = options
        self._spares: dict[int, list[Any]] = {}
        """By rank, an item that it has read, for micro-batches without items of its own."""
        self._have_spare: set[int] = set()
        """The ranks that have one, wherever they are read."""

    def next_step(self) -> StepBatches | None:
        """The next step, which the end of the epoch may cut short; None if nothing is left."""
        items: dict[int, list[Any]] = {shard: [] for shard in self._own}
        shards = self._read(items)
        if not shards:
            return None
        if self._sharding.divided:
            cut = self._by_shard(shards, items)
        else:
            cut = cut_items(items[0], self._parts, micro_items=self._micro_items)
        self._rotation.take(shards)
        return StepBatches([micro_batch(*part, self._options) for part in cut], len(shards))

    def _read(self, items: Mapping[int, list[Any]]) -> list[int]:
        """Read the step's items of this rank's shards; returns the shards of all its items, in order.

        Where a shard ends is known to those who read it, and changes what the others read: so ranks agree on it. Until
        one ends, that is one number of each rank for each step.
        """
        while True:
            shards = self._rotation.upcoming(self._step_items)
            wanted = Counter(shards)
            missing = {shard: wanted[shard] - len(read) for shard, read in items.items() if wanted[shard] > len(read)}
            ends = {}
            for shard, read in self._reading.read(missing).items() if missing else ():
                items[shard].extend(read)
                if len(read) < missing[shard]:
                    ends[shard] = self._rotation.taken[shard] + len(items[shard])
            if not self._world.any(bool(ends)):
                self._compare(items)
                return shards
            self._note_ends(self._world.gather_objects(ends))

    def _compare(self, items: Mapping[int, list[Any]]) -> None:
        """At the first step of an epoch: see that ranks which read the same stream have read the same items."""
        if self._sharding.divided or self._world.size == 1 or self._rotation.taken[0]:
            return
        if len({*self._world.gather_objects(digest(items[0]))}) > 1:
            logger.warning(
                "the ranks have read different items of the %s stream. Every rank reads all of it and keeps its own "
                "part, so items are lost and doubled, unless they only differ in random numbers that the stream draws "
                "from a generator of its own. Do not divide it by rank in the hook, and shuffle it with a seed.",
                self._name,
            )

    def _note_ends(self, of_ranks: Sequence[Mapping[int, int]]) -> None:
        if not self._sharding.divided and any(ends != of_ranks[0] for ends in of_ranks):
            said = (
                f"{ends[0]} on rank {rank}" if ends else f"more on rank {rank}" for rank, ends in enumerate(of_ranks)
            )
            raise DataError(
                f"the ranks disagree on the number of items of the data hook's {self._name!r} stream: "
                f"{', '.join(said)}. Every rank reads all of it and keeps its own part, so it must be the same on "
                "every rank: do not divide it by rank in the hook, or let it divide itself (shard, docs/data.md)."
            )
        for ends in of_ranks:
            self._rotation.note_lengths(ends)

    def _by_shard(self, shards: Sequence[int], items: Mapping[int, list[Any]]) -> Iterator[tuple[list[Any], int]]:
        """Micro-batches of the items in each rank's shards, as many as the rank with most items has."""
        ranks = self._parts.ranks
        readers = {shard: iter(read) for shard, read in items.items()}
        of_ranks: dict[int, list[Any]] = {rank: [] for rank in self._parts.own}
        for shard in shards:
            if shard in readers:
                of_ranks[shard % ranks].append(next(readers[shard]))
        counts = Counter(shard % ranks for shard in shards)
        self._find_spares(of_ranks, counts)
        rounds = -(-max(counts.values()) // self._micro_items)
        cut = [_evenly(mine, rounds, spare=self._spares[rank]) for rank, mine in of_ranks.items()]
        return chain.from_iterable(zip(*cut, strict=True))

    def _find_spares(self, of_ranks: Mapping[int, list[Any]], counts: Mapping[int, int]) -> None:
        """Keep an item of each rank; one that has never had any gets another's."""
        self._have_spare |= counts.keys()
        self._spares |= {rank: [mine[-1]] for rank, mine in of_ranks.items() if mine}
        if len(self._have_spare) < self._parts.ranks:
            given = {
                rank: spare for spares in self._world.gather_objects(self._spares) for rank, spare in spares.items()
            }
            first = given[min(given)]
            self._spares = dict.fromkeys(of_ranks, first) | self._spares
            self._have_spare = {*range(self._parts.ranks)}


def _evenly(items: Sequence[Any], rounds: int, *, spare: list[Any]) -> Iterator[tuple[list[Any], int]]:
    base, longer = divmod(len(items), rounds)
    first = 0
    for number in range(rounds):
        length = base + (number < longer)
        yield [*items[first : first + length]] or spare, length
        first += length
