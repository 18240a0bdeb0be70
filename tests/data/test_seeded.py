"""Random numbers of items: those of run.seed, epoch and index, whatever else is read and however."""

import random
from collections.abc import Iterator
from typing import Any

import numpy
import pytest
import torch

from runner.data.seeded import SeededItems
from runner.world.seeds import host_generators_kept, mix, mix_each, seed_host

SEED = 7


class Items:
    """Ten items, and which of them were read."""

    def __init__(self) -> None:
        self.was_read: list[int] = []

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> Any:
        self.was_read.append(index)
        return index, self.drawn(index)

    def drawn(self, index: int) -> Any:
        return None


class OfTorch(Items):
    def drawn(self, index: int) -> Any:
        return torch.rand(()).item()


class OfPython(Items):
    def drawn(self, index: int) -> Any:
        return random.gauss(0, 1)


class OfNumpy(Items):
    def drawn(self, index: int) -> Any:
        return numpy.random.rand()


class Sometimes(Items):
    """As an augmentation that few items get."""

    def drawn(self, index: int) -> Any:
        return random.random() + numpy.random.rand() + torch.rand(()).item() if index % 4 == 3 else None


class Restoring(Items):
    """Draws without a trace, from torch; and from a generator seeded by torch's own."""

    def drawn(self, index: int) -> Any:
        with torch.random.fork_rng():
            return torch.rand(()).item(), random.Random(torch.initial_seed()).random()


class Choosy(Items):
    """Fails if it draws what is not for it."""

    def drawn(self, index: int) -> Any:
        number = random.random()
        if number not in {random.Random(mix(SEED, epoch * 10 + index)).random() for epoch in range(3)}:
            raise ZeroDivisionError("another item's number")
        return number


class Many(Items):
    """Reads many items at once, and draws for each."""

    def __getitems__(self, indices: list[int]) -> list[Any]:
        return [self[index] for index in indices]


class ManyOfTorch(Many):
    drawn = OfTorch.drawn


class ManySometimes(Many):
    drawn = Sometimes.drawn


@pytest.fixture(autouse=True)
def generators_kept() -> Iterator[None]:
    with host_generators_kept():
        yield


def after() -> tuple[Any, ...]:
    """What a collate would draw."""
    return random.random(), numpy.random.rand(), torch.rand(()).item()


def one_by_one(dataset: Any, indices: list[int], epoch: int) -> tuple[list[Any], Any]:
    """The oracle: each item after seeding."""
    items = []
    for index in indices:
        seed_host(mix(SEED, epoch * len(dataset) + index))
        items.append(dataset[index])
    return items, after()


@pytest.mark.parametrize(
    "kind", [Items, OfTorch, OfPython, OfNumpy, Sometimes, Restoring, Choosy, Many, ManyOfTorch, ManySometimes]
)
def test_an_item_draws_what_it_would_draw_alone(kind: type[Items]) -> None:
    for size in (1, 4, 7):
        reader = SeededItems(kind(), seed=SEED)
        for epoch in (0, 2):
            for first in range(0, 10, size):
                indices = [*range(first, min(first + size, 10))]
                assert (reader.read(indices, epoch), after()) == one_by_one(kind(), indices, epoch)


def test_items_that_do_not_draw_are_read_once() -> None:
    for dataset in (Items(), Many(), OfTorch(), Restoring()):
        reader = SeededItems(dataset, seed=SEED)
        reader.read([3, 4], 0)
        reader.read([5, 6], 0)
        assert dataset.was_read == [3, 4, 5, 6]


def test_items_that_draw_are_read_twice_until_it_is_known() -> None:
    for dataset in (Sometimes(), ManySometimes()):
        reader = SeededItems(dataset, seed=SEED)
        for indices in ([1, 2], [2, 3], [7, 0]):
            reader.read(indices, 0)
        assert dataset.was_read == [1, 2, 2, 3, 2, 3, 7, 0]


class Failing(Items):
    def drawn(self, index: int) -> Any:
        raise ZeroDivisionError("of the user's own")


def test_an_item_that_fails_without_drawing_is_not_read_again() -> None:
    dataset = Failing()
    with pytest.raises(ZeroDivisionError, match=r"of the user's own"):
        SeededItems(dataset, seed=SEED).read([3, 4], 0)
    assert dataset.was_read == [3]


def test_seeds_are_the_same_made_one_by_one_or_together() -> None:
    for seed, first, offsets in (
        (0, 0, [0]),
        (2**63, 10**12, [5, 0, 2**62]),
        (3, 2**64 - 1, [1, 2]),
        (5, 10, [*range(-1, 9)]),
    ):
        assert mix_each(seed, first, offsets) == [mix(seed, first + offset) for offset in offsets]
