"""Mixtures: every dataset in its proportion and in epochs of its own, whatever the ranks and the stops."""

import functools
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import default_collate

from runner.data import Mixture
from runner.data.mixture import BLOCK_ITEMS, Blend
from runner.data.source import plan_at
from runner.errors import CheckpointError, DataError, Fault
from runner.order.sequential import Sequential
from runner.order.shuffled import Shuffled
from runner.protocols import LoaderOptions, Order, Ordering, SourceRequest
from tests.data.streams import CPU, items_of
from tests.data.test_source import Seat

DATASETS = {"few": [*range(7)], "many": [*range(1000, 1070)], "one": [2000]}


class Remembered:
    """An order whose parts are computed once: sources of all ranks and schedules of a test read the same ones."""

    def __init__(self, order: Order) -> None:
        self.num_items = order.num_items
        self.indices = functools.cache(order.indices)


class ShuffledOnce:
    """`Shuffled`, computed once. A block of 1,024 items begins hundreds of epochs of a dataset of one or seven."""

    def __init__(self) -> None:
        self._orders: dict[tuple[int, int], Remembered] = {}

    def check(self, spec: Any) -> tuple[Fault, ...]:
        return ()

    def build(self, dataset: Any, *, seed: int) -> Order:
        key = len(dataset), seed
        if key not in self._orders:
            self._orders[key] = Remembered(Shuffled().build(dataset, seed=seed))
        return self._orders[key]


SHUFFLED = ShuffledOnce()
WEIGHTS = {"few": 0.25, "many": 0.7, "one": 0.05}


def opened(
    weights: Any = WEIGHTS,
    *,
    datasets: Any = DATASETS,
    rank: int = 0,
    ranks: int = 1,
    workers: int = 0,
    micro_items: int = 3,
    order: Ordering = SHUFFLED,
    step_items: int = 12,
) -> Any:
    options = LoaderOptions(collate=default_collate, device=CPU, workers=workers, prefetch=2, pin_memory=False)
    request = SourceRequest(
        step_items=step_items,
        micro_items=micro_items,
        world=Seat(rank, ranks),
        seed=3,
        order=order,
        loader=options,
    )
    return Mixture(datasets, weights).open_source(request)


def read(source: Any, steps: int) -> list[int]:
    return [item for step in islice(source, steps) for item in items_of(step.micro_batches)]


def named(items: list[int]) -> Iterator[str]:
    return (next(name for name, dataset in DATASETS.items() if item in dataset) for item in items)


def assert_once_an_epoch(items: list[int], name: str) -> None:
    """Cut into epochs, the items of a dataset are different ones in each."""
    dataset = DATASETS[name]
    mine = [item for item in items if item in dataset]
    epochs = [mine[first : first + len(dataset)] for first in range(0, len(mine), len(dataset))]
    assert all(len({*epoch}) == len(epoch) for epoch in epochs)


def test_proportions_are_those_of_the_weights_and_each_dataset_has_epochs_of_its_own() -> None:
    items = read(opened(), 2 * BLOCK_ITEMS // 12 + 1)
    for blocks in (1, 2):
        counts = Counter(named(items[: blocks * BLOCK_ITEMS]))
        assert all(abs(counts[name] - WEIGHTS[name] * blocks * BLOCK_ITEMS) <= 2 for name in WEIGHTS)
    for first in range(0, BLOCK_ITEMS, 100):  # spread evenly: a stretch of a block is a mixture as well
        counts = Counter(named(items[first : first + 100]))
        assert all(abs(counts[name] - 100 * WEIGHTS[name]) <= 3 for name in WEIGHTS)
    for name in DATASETS:
        assert_once_an_epoch(items, name)


def test_without_weights_all_datasets_end_their_epochs_together() -> None:
    items = read(opened(None, order=Sequential()), BLOCK_ITEMS // 12)[:780]
    counts = Counter(items)
    assert {*counts} == {item for dataset in DATASETS.values() for item in dataset}
    assert {*counts.values()} <= {9, 10, 11}  # ten epochs; a block is even at its ends, and nearly so inside
    assert [item for item in items if item < 7][:9] == [*range(7), 0, 1]


SHARES = st.lists(st.floats(0, 1), min_size=3, max_size=3).filter(any)


def go_on_with_other_ranks(data: Any, weights: Any) -> None:
    """K3 for mixtures."""
    chosen = dict(zip(WEIGHTS, weights, strict=True))
    whole = read(opened(chosen), 20)
    seen: list[int] = []
    state: Any = None
    while len(seen) < len(whole):
        ranks, micro_items = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 5))
        steps = data.draw(st.integers(1, (len(whole) - len(seen)) // 12))
        sources = [opened(chosen, rank=rank, ranks=ranks, micro_items=micro_items) for rank in range(ranks)]
        if state is not None:
            for source in sources:
                source.load_state_dict(state)
        for step in zip(*(islice(source, steps) for source in sources), strict=True):
            rounds = zip(*(of_rank.micro_batches for of_rank in step), strict=True)
            seen += [item for micros in rounds for item in items_of([*micros])]
        state = sources[0].state_dict()
    assert seen == whole


@given(data=st.data(), weights=SHARES)
@settings(deadline=None, max_examples=15)
def test_stopping_anywhere_and_going_on_with_other_ranks_reads_the_same_items(data: Any, weights: Any) -> None:
    go_on_with_other_ranks(data, weights)


@pytest.mark.exhaustive
@pytest.mark.timeout(900)
@given(data=st.data(), weights=SHARES)
@settings(deadline=None, max_examples=1000)
def test_a_thousand_schedules_read_the_same_items(data: Any, weights: Any) -> None:
    go_on_with_other_ranks(data, weights)


def test_workers_read_the_same_items() -> None:
    assert read(opened(workers=2), 10) == read(opened(), 10)


@given(first=st.integers(1, 150), second=st.integers(1, 150))
@settings(deadline=None, max_examples=20)
def test_other_weights_on_resume_lose_and_double_nothing(first: int, second: int) -> None:
    begun = opened()
    items = read(begun, first)
    changed = opened({"few": 3, "many": 1, "one": 0})
    changed.load_state_dict(begun.state_dict())
    items += read(changed, second)
    back = opened()
    back.load_state_dict(changed.state_dict())
    items += read(back, 20)
    for name in DATASETS:
        assert_once_an_epoch(items, name)
    counts = Counter(named(items[12 * first : 12 * (first + second)]))
    assert counts["one"] == 0
    assert counts["few"] == pytest.approx(0.75 * 12 * second, abs=3)


def test_a_dataset_more_leaves_the_others_where_they_are() -> None:
    few, many = {"few": DATASETS["few"]}, {"many": DATASETS["many"]}
    begun = opened(None, datasets=many)
    items = read(begun, 3)
    grown = opened({"few": 1, "many": 1}, datasets=few | many)
    grown.load_state_dict(begun.state_dict())
    items += read(grown, 5)
    assert Counter(named(items)) == {"many": 36 + 30, "few": 30}
    for name in ("many", "few"):
        assert_once_an_epoch(items, name)


def test_far_positions_cost_nothing() -> None:
    far = 10**15
    counts = Blend(WEIGHTS, seed=0).counts(far)
    assert sum(counts.values()) == far
    assert all(abs(counts[name] - WEIGHTS[name] * far) <= BLOCK_ITEMS for name in WEIGHTS)
    source = opened()
    source.load_state_dict(source.state_dict() | {"position": far})
    assert len(read(source, 2)) == 24
    assert source.position == far + 24


def test_many_datasets_of_tiny_weights_fill_every_block() -> None:
    weights = {str(number): 1.0 for number in range(40)} | {"large": 1.5}
    blend = Blend(weights, seed=0)
    assert [len(blend.datasets(block)) for block in range(3)] == [blend.block_items] * 3


def test_the_items_of_a_step_can_be_listed_by_position() -> None:
    plan = plan_at(opened(rank=1, ranks=2), 24)
    assert plan is not None
    assert [index for micro in plan.micro_batches for index in micro.indices] == [27, 28, 29, 33, 34, 35]


@pytest.mark.parametrize(
    ("datasets", "weights", "message"),
    [
        ({}, None, "a mixture needs datasets"),
        ({"a": [1]}, {"b": 1}, "weights of a mixture are for b, but its datasets are a. Give each"),
        ({"a": [1]}, {"a": -1}, r"weight -1.0 of the dataset 'a' of a mixture is not a number from 0"),
        ({"a": [1]}, {"a": float("nan")}, "weight nan of the dataset 'a'"),
        ({"a": [1]}, {"a": 0}, "all weights of a mixture are 0"),
        ({"a": []}, None, "'train/a' dataset is empty"),
        ({"a": iter([1])}, None, r"'train/a' dataset \(list_iterator\) has no length"),
    ],
)
def test_what_cannot_be_mixed_is_refused(datasets: Any, weights: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        Mixture(datasets, weights)


def test_the_state_of_another_source_is_refused() -> None:
    with pytest.raises(CheckpointError, match=r"a source with position, but this run reads a mixture, whose state has"):
        opened().load_state_dict({"position": 3})
