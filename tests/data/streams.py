"""Streams for tests: numbers, with or without shards and states, and what reading them in order means."""

from collections.abc import Iterator
from itertools import zip_longest
from typing import Any

from torch import device
from torch.utils.data import default_collate

from runner.data.streamed import StreamedSource
from runner.protocols import LoaderOptions, MicroBatch, StepBatches
from runner.world.solo import SoloWorld

CPU = device("cpu")
NOTHING = object()


class Plain:
    """Numbers. Counts how many were read, in this process."""

    def __init__(self, *numbers: int) -> None:
        self.numbers, self.reads = numbers, [0]

    def __iter__(self) -> Iterator[int]:
        for number in self.numbers:
            self.reads[0] += 1
            yield number


class WithState(Plain):
    """Continues from a state. As naive as one would write it: an iteration left in the middle is continued."""

    at = 0

    def __iter__(self) -> Iterator[int]:
        while self.at < len(self.numbers):
            self.reads[0] += 1
            self.at += 1
            yield self.numbers[self.at - 1]
        self.at = 0

    def state_dict(self) -> dict[str, Any]:
        return {"at": self.at}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.at = state["at"]


class Sharded:
    """Shards of unequal length, one of them empty."""

    num_shards = 5
    of = Plain
    lengths: tuple[int, ...] = (7, 0, 3, 11, 4)

    def parts(self) -> list[list[int]]:
        return [[100 * shard + item for item in range(length)] for shard, length in enumerate(self.lengths)]

    def shard(self, rank: int, ranks: int) -> Plain:
        assert ranks == len(self.lengths)
        return self.of(*self.parts()[rank])

    def __iter__(self) -> Iterator[int]:
        raise AssertionError("nobody reads all shards at once")


class ShardedWithState(Sharded):
    of = WithState


class AnyShards:
    """Divides itself into as many parts as one likes."""

    def __iter__(self) -> Iterator[int]:
        return iter(range(25))

    def shard(self, rank: int, ranks: int) -> Plain:
        return WithState(*range(25)[rank::ranks])


def in_turn(*parts: Any) -> list[int]:
    """One item of each part in turn, without those that have ended."""
    return [item for row in zip_longest(*parts, fillvalue=NOTHING) for item in row if item is not NOTHING]


STREAMS: dict[str, tuple[Any, list[int]]] = {
    "plain": (lambda: Plain(*range(25)), [*range(25)]),
    "state": (lambda: WithState(*range(25)), [*range(25)]),
    "shards": (Sharded, in_turn(*Sharded().parts())),
    "shards_state": (ShardedWithState, in_turn(*Sharded().parts())),
    "any_shards": (AnyShards, in_turn(*(range(25)[shard::16] for shard in range(16)))),
}
"""By name: what makes the stream, and the items of an epoch in their order."""


def steps_of(items: list[int], step_items: int, *, epochs: int) -> list[list[int]]:
    """The items of each step."""
    return [items[first : first + step_items] for _ in range(epochs) for first in range(0, len(items), step_items)]


def source(
    stream: Any,
    *,
    world: Any = None,
    step_items: int = 4,
    micro_items: int = 2,
    workers: int = 0,
    collate: Any = default_collate,
) -> StreamedSource:
    """Its source on a rank."""
    options = LoaderOptions(collate=collate, device=CPU, workers=workers, prefetch=2, pin_memory=False)
    return StreamedSource(
        stream,
        "train",
        step_items=step_items,
        micro_items=micro_items,
        world=world or SoloWorld(CPU),
        seed=3,
        options=options,
    )


def items_of(micro_batches: list[MicroBatch]) -> list[int]:
    """The items that count."""
    return [item for micro in micro_batches for item in micro.batch.tolist()[: micro.items]]


def merged(ranks: list[list[StepBatches]], *, micro_items: int) -> list[list[int]]:
    """The items of each step, over all ranks. Sees that ranks have equally many micro-batches, none too large."""
    together = []
    for step in zip(*ranks, strict=True):
        assert len({len(of_rank.micro_batches) for of_rank in step}) == 1
        assert all(0 < len(micro.batch) <= micro_items for of_rank in step for micro in of_rank.micro_batches)
        items = [item for of_rank in step for item in items_of(of_rank.micro_batches)]
        assert {len(items)} == {of_rank.items for of_rank in step}
        together.append(items)
    return together
