"""Law 5: the order of items is a pure function of (seed, epoch)."""

import itertools
import tracemalloc
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from runner.data.order import Drawn, Sequential, Shuffled, ShuffledWindows, StoredPermutation, WithoutReplacement
from runner.data.permutation import KeyedPermutation
from runner.protocols import Order

BILLION = 10**9
SHUFFLED = [6, 1, 5, 2, 4, 3, 0, 7]
OF_A_BILLION = [96998771, 460726183, 51606709]
WEIGHTS = numpy.array([4.0, 0.0, 1.0, 3.0, 2.0, 0.0])
ONCE: dict[str, Callable[[int, int], Order]] = {
    "shuffled": lambda items, seed: Shuffled(items, seed=seed),
    "windows": lambda items, seed: ShuffledWindows(items, window=7, seed=seed),
    "stored": lambda items, seed: StoredPermutation(items, seed=seed),
    "weighted": lambda items, seed: WithoutReplacement(numpy.arange(1.0, items + 1), num_items=items, seed=seed),
}
"""Orders in which each item comes once an epoch."""
ALL = {**ONCE, "drawn": lambda items, seed: Drawn(numpy.ones(items), num_items=items, seed=seed)}


def epoch_of(order: Order, epoch: int = 0) -> list[int]:
    found: list[int] = order.indices(epoch, 0, order.num_items).tolist()
    return found


@pytest.mark.parametrize("make", ONCE.values(), ids=ONCE)
@given(items=st.integers(1, 300), seed=st.integers(0, 2**63), epoch=st.integers(0, 1000))
@settings(deadline=None, max_examples=50)
def test_every_item_comes_once_an_epoch(make: Any, items: int, seed: int, epoch: int) -> None:
    assert sorted(epoch_of(make(items, seed), epoch)) == list(range(items))


@pytest.mark.parametrize("make", ALL.values(), ids=ALL)
def test_an_order_differs_by_epoch_and_seed_and_by_nothing_else(make: Any) -> None:
    first = epoch_of(make(50, 0))
    assert first == epoch_of(make(50, 0))
    assert first not in (epoch_of(make(50, 0), epoch=1), epoch_of(make(50, 1)), list(range(50)))


@pytest.mark.parametrize("make", ALL.values(), ids=ALL)
def test_any_slice_of_any_epoch_can_be_asked_for_in_any_order(make: Any) -> None:
    order = make(40, 1)
    whole = [epoch_of(make(40, 1), epoch) for epoch in range(4)]
    for epoch, start, stop in ((1, 2, 31), (0, 0, 40), (1, 6, 10), (3, 39, 40), (0, 4, 4), (2, 13, 15)):
        assert order.indices(epoch, start, stop).tolist() == whole[epoch][start:stop]


def test_the_orders_are_those_that_runs_so_far_were_made_with() -> None:
    """Resuming an older run depends on it, so the numbers stand here."""
    assert epoch_of(StoredPermutation(8, seed=5)) == [3, 1, 2, 4, 5, 6, 7, 0]
    assert epoch_of(Shuffled(8, seed=5)) == SHUFFLED
    assert Shuffled(BILLION, seed=5).indices(3, 10**8, 10**8 + 3).tolist() == OF_A_BILLION


@pytest.mark.parametrize(("items", "seeds"), [(3, 1500), (4, 3000)])
def test_every_permutation_is_equally_likely(items: int, seeds: int) -> None:
    """By chi-square, with 5 standard deviations allowed."""
    counts = Counter(tuple(KeyedPermutation(items, seed=seed).indices(0, items).tolist()) for seed in range(seeds))
    expected = seeds / len(list(itertools.permutations(range(items))))
    excess = sum((counts[one] - expected) ** 2 / expected for one in itertools.permutations(range(items)))
    freedom = seeds / expected - 1
    assert abs(excess - freedom) < 5 * (2 * freedom) ** 0.5


def test_neighbours_in_a_long_order_are_unrelated() -> None:
    items = 100_000
    order = KeyedPermutation(items, seed=1).indices(0, items).astype(float)
    for lag in (1, 2, 3, 316, 317, 318):  # also those that the digits of the network could leave their mark on
        assert abs(numpy.corrcoef(order[:-lag], order[lag:])[0, 1]) < 5 / items**0.5
    assert abs(numpy.corrcoef(order, numpy.arange(items))[0, 1]) < 5 / items**0.5


@given(items=st.integers(1, 10**12), seed=st.integers(0, 2**63), data=st.data())
@settings(deadline=None)
def test_the_place_of_an_item_is_the_inverse(items: int, seed: int, data: Any) -> None:
    permutation, place = KeyedPermutation(items, seed=seed), data.draw(st.integers(0, items - 1))
    assert permutation.place_of(int(permutation.indices(place, place + 1)[0])) == place


@pytest.mark.parametrize("make", [ALL["shuffled"], lambda items, seed: ShuffledWindows(items, window=4096, seed=seed)])
def test_a_billion_items_take_no_memory(make: Any) -> None:
    """What is planned at once: steps.CHUNK_ITEMS. A megabyte is less than a thousandth of the items' indices."""
    make(BILLION, 0).indices(0, 0, 4096)
    tracemalloc.start()
    order = make(BILLION, 0)
    for start in (0, BILLION // 2, BILLION - 4096):
        assert len(set(order.indices(7, start, start + 4096).tolist())) == 4096
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 20


def test_items_of_a_window_stay_together() -> None:
    order = epoch_of(ShuffledWindows(23, window=5, seed=2))
    ends = numpy.flatnonzero(numpy.diff([item // 5 for item in order])) + 1
    windows = [{item // 5 for item in part} for part in numpy.split(order, ends)]
    assert len(windows) == 5, "each window in one piece"
    assert sorted(item for one in windows for item in one) == [0, 1, 2, 3, 4]


def test_items_are_drawn_as_often_as_their_weights_say() -> None:
    draws = 100_000
    counts = Counter(epoch_of(Drawn(WEIGHTS, num_items=draws, seed=3)))
    for item, weight in enumerate(WEIGHTS):
        expected = draws * weight / WEIGHTS.sum()
        assert abs(counts[item] - expected) <= 5 * expected**0.5


def test_without_replacement_the_first_item_is_drawn_by_weight() -> None:
    epochs = 5000
    order = WithoutReplacement(WEIGHTS, num_items=4, seed=3)
    first = Counter(int(order.indices(epoch, 0, 1)[0]) for epoch in range(epochs))
    for item, weight in enumerate(WEIGHTS):
        expected = epochs * weight / WEIGHTS.sum()
        assert abs(first[item] - expected) <= 5 * expected**0.5
    assert sorted(epoch_of(order)) == [0, 2, 3, 4], "an item without weight never comes"


def test_drawing_an_order_leaves_the_global_generators_alone() -> None:
    torch.manual_seed(3)
    numpy.random.seed(3)
    expected = torch.rand(2), numpy.random.rand()
    torch.manual_seed(3)
    numpy.random.seed(3)
    for make in ALL.values():
        epoch_of(make(50, 0))
    assert torch.equal(torch.rand(2), expected[0])
    assert numpy.random.rand() == expected[1]


def test_sequential_is_the_datasets_order_in_every_epoch() -> None:
    assert Sequential(10).indices(7, 3, 6).tolist() == [3, 4, 5]
