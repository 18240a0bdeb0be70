"""Law 5: steps are a pure function of (order, position), split among the ranks without loss."""

from typing import Any

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runner.data.order import Shuffled
from runner.data.steps import RankSteps, single_pass, split

SMALL = st.integers(1, 7)
LENGTHS = numpy.random.default_rng(0).integers(1, 40, 60)


def test_a_short_step_is_split_evenly_and_a_rank_without_items_runs_along() -> None:
    assert split(8, ranks=2, micro_items=2) == [(0, 2), (2, 2), (4, 2), (6, 2)]
    assert split(5, ranks=2, micro_items=4) == [(0, 3), (3, 2)]
    assert split(1, ranks=2, micro_items=4) == [(0, 1), (0, 0)]


@given(items=st.integers(1, 40), ranks=SMALL, micro_items=SMALL)
def test_a_split_covers_every_item_once_with_equally_many_slots_for_each_rank(
    items: Any, ranks: Any, micro_items: Any
) -> None:
    slots = split(items, ranks=ranks, micro_items=micro_items)
    assert len(slots) % ranks == 0
    assert [first + offset for first, length in slots for offset in range(length)] == list(range(items))
    assert max(length for _, length in slots) <= micro_items
    assert max(length for _, length in slots) - min(length for _, length in slots) <= 1


def _rank_steps(
    num_items: Any,
    *,
    ranks: Any,
    rank: Any,
    micro_items: Any,
    accumulate: Any,
    position: Any,
    steps: Any,
) -> Any:
    step_items = ranks * micro_items * accumulate
    order = Shuffled(num_items, seed=5)
    rank_steps = RankSteps(order=order, step_items=step_items, micro_items=micro_items, rank=rank, ranks=ranks)
    plans = rank_steps.starting_at(position)
    return [next(plans) for _ in range(steps)]


@given(num_items=st.integers(1, 60), ranks=SMALL, micro_items=SMALL, accumulate=st.integers(1, 3))
@settings(deadline=None)
def test_all_ranks_together_read_every_item_once_an_epoch(
    num_items: Any, ranks: Any, micro_items: Any, accumulate: Any
) -> None:
    step_items = ranks * micro_items * accumulate
    steps = -(-num_items // step_items)
    for epoch in range(2):
        seen = []
        for rank in range(ranks):
            plans = _rank_steps(
                num_items,
                ranks=ranks,
                rank=rank,
                micro_items=micro_items,
                accumulate=accumulate,
                position=epoch * num_items,
                steps=steps,
            )
            seen += [i for plan in plans for micro in plan.micro_batches if micro.items for i in micro.indices]
            assert plans[-1].position == (epoch + 1) * num_items
        assert sorted(seen) == list(range(num_items))


ANYWHERE = given(data=st.data(), num_items=st.integers(1, 50), epochs=st.integers(1, 3))


@ANYWHERE
@settings(deadline=None, max_examples=150)
def test_stopping_anywhere_and_going_on_in_another_world_reads_the_same_steps(
    data: Any, num_items: Any, epochs: Any
) -> None:
    stop_and_go_on(data, num_items, epochs)


@pytest.mark.exhaustive
@ANYWHERE
@settings(deadline=None, max_examples=1000)
def test_a_thousand_schedules_read_the_same_steps(data: Any, num_items: Any, epochs: Any) -> None:
    stop_and_go_on(data, num_items, epochs)


def stop_and_go_on(data: Any, num_items: int, epochs: int) -> None:
    """K3: random schedules of worlds, micro-batches and cuts; together they read the steps of one undisturbed rank."""
    order, step_items = Shuffled(num_items, seed=5), 12
    undisturbed = RankSteps(order=order, step_items=step_items, micro_items=step_items, rank=0, ranks=1).starting_at(0)
    position = 0
    while position < epochs * num_items:
        ranks, micro_items = data.draw(st.integers(1, 4)), data.draw(st.sampled_from([1, 2, 3]))
        lengths = data.draw(st.sampled_from([None, LENGTHS]))
        micro_tokens = None if lengths is None else data.draw(st.sampled_from([None, 40, 100]))
        cut = {"micro_items": micro_items, "lengths": lengths, "micro_tokens": micro_tokens}
        attempt = [
            RankSteps(order=order, step_items=step_items, rank=rank, ranks=ranks, **cut).starting_at(position)
            for rank in range(ranks)
        ]
        for _ in range(data.draw(st.integers(1, 4))):
            expected, plans = next(undisturbed), [next(steps) for steps in attempt]
            rounds = zip(*(plan.micro_batches for plan in plans), strict=True)
            seen = [i for micro_batches in rounds for micro in micro_batches if micro.items for i in micro.indices]
            whole = expected.micro_batches[0].indices
            assert sorted(seen) == sorted(whole)
            assert seen == whole or lengths is not None
            assert {plan.position for plan in plans} == {expected.position}
            position = expected.position


def test_evaluation_reads_every_item_once_in_its_own_order() -> None:
    for ranks in (1, 2, 3):
        passes = [list(single_pass(10, micro_items=4, rank=rank, ranks=ranks)) for rank in range(ranks)]
        assert len({len(one) for one in passes}) == 1
        counted = [i for rounds in zip(*passes, strict=True) for micro in rounds if micro.items for i in micro.indices]
        assert counted == list(range(10))


class Countdown:
    """An order of a user's own: two members are enough."""

    num_items = 5

    def indices(self, epoch: Any, start: Any, stop: Any) -> Any:
        return numpy.array([4 - place for place in range(start, stop)])


def test_any_order_of_two_members_can_be_read() -> None:
    steps = RankSteps(order=Countdown(), step_items=2, micro_items=2, rank=0, ranks=1).starting_at(2)
    assert [next(steps).micro_batches[0].indices for _ in range(4)] == [[2, 1], [0], [4, 3], [2, 1]]


@given(num_items=st.integers(1, 60), ranks=SMALL, micro_items=SMALL, accumulate=st.integers(1, 3), data=st.data())
@settings(deadline=None)
def test_cutting_by_length_divides_the_same_items_of_each_step(
    num_items: Any, ranks: Any, micro_items: Any, accumulate: Any, data: Any
) -> None:
    lengths = LENGTHS[:num_items]
    micro_tokens = data.draw(st.none() | st.integers(40, 200))
    common = {"order": Shuffled(num_items, seed=5), "step_items": ranks * micro_items * accumulate}
    even = RankSteps(**common, micro_items=common["step_items"], rank=0, ranks=1).starting_at(0)
    cut = [
        RankSteps(
            **common, micro_items=micro_items, rank=rank, ranks=ranks, lengths=lengths, micro_tokens=micro_tokens
        ).starting_at(0)
        for rank in range(ranks)
    ]
    for _ in range(8):
        whole, parts = next(even), [next(steps) for steps in cut]
        assert {(part.items, part.position) for part in parts} == {(whole.items, whole.position)}
        assert len({len(part.micro_batches) for part in parts}) == 1, "as many micro-batches on every rank"
        counted = [micro for part in parts for micro in part.micro_batches if micro.items]
        assert sorted(i for micro in counted for i in micro.indices) == sorted(whole.micro_batches[0].indices)
        for micro in counted:
            assert len(micro.indices) == micro.items <= micro_items
            assert micro_tokens is None or micro.items * max(lengths[micro.indices]) <= micro_tokens
        shortest_before = 40
        for together in zip(*(part.micro_batches for part in parts), strict=True):
            of_round = [lengths[i] for micro in together if micro.items for i in micro.indices]
            assert max(of_round) <= shortest_before, "ranks read alike lengths at a time, the longest first"
            shortest_before = min(of_round)
