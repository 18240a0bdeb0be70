"""The order of a stream's items: taken from its shards in turn."""

from collections.abc import Mapping, Sequence
from itertools import cycle, islice
from typing import final


@final
class Rotation:
    """How many items of an epoch were taken from each shard, and whose turn it is. The same on every rank.

    A shard that has ended is left out. So the order depends on the shards alone, not on who reads them.
    """

    def __init__(self, num_shards: int) -> None:
        self.taken = [0] * num_shards
        self.turn = 0
        """The shard from which the next item comes, unless it has ended."""
        self._lengths: dict[int, int] = {}

    def ended(self, shard: int) -> bool:
        """Whether all items of a shard were taken."""
        return self._lengths.get(shard) == self.taken[shard]

    def note_lengths(self, lengths: Mapping[int, int]) -> None:
        """Note how many items shards have in this epoch, found out by reading to their ends."""
        self._lengths |= lengths

    def knows(self, shard: int) -> bool:
        """Whether the length of a shard is known."""
        return shard in self._lengths

    def upcoming(self, num_items: int) -> list[int]:
        """The shards of the next items, in order; fewer if all shards end before."""
        left = {shard: length - self.taken[shard] for shard, length in self._lengths.items()}
        order = [*range(self.turn, len(self.taken)), *range(self.turn)]
        found: list[int] = []
        while len(found) < num_items:
            live = [shard for shard in order if left.get(shard, num_items) > 0]
            if not live:
                break
            # Whole rounds, until the first of the live shards ends.
            rounds = min(left.get(shard, num_items) for shard in live)
            some = [*islice(cycle(live), min(rounds * len(live), num_items - len(found)))]
            for shard in some:
                if shard in left:
                    left[shard] -= 1
            found += some
        return found

    def take(self, shards: Sequence[int]) -> None:
        """Count the items that `upcoming` returned as taken."""
        for shard in shards:
            self.taken[shard] += 1
        if shards:
            self.turn = (shards[-1] + 1) % len(self.taken)

    def begin_epoch(self) -> None:
        """Nothing is taken, and no length known."""
        self.taken, self.turn, self._lengths = [0] * len(self.taken), 0, {}
