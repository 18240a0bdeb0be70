"""Law 5: steps are a pure function of (order, position), split among the ranks without loss."""

from typing import Any

import numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from runner.data.order import order_of, permutation
from runner.data.steps import RankSteps, single_pass, split

SMALL = st.integers(1, 7)


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
    shuffle: bool = True,
) -> Any:
    step_items = ranks * micro_items * accumulate
    order = order_of(num_items, seed=5, shuffle=shuffle)
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


@given(data=st.data(), num_items=st.integers(1, 50), epochs=st.integers(1, 3))
@settings(deadline=None, max_examples=200)
def test_stopping_anywhere_and_going_on_at_another_world_size_reads_the_same_global_order(
    data: Any, num_items: Any, epochs: Any
) -> None:
    """K3 in small: random worlds follow each other; together they read what one uninterrupted world of one reads."""
    whole = [i for epoch in range(epochs) for i in permutation(num_items, seed=5, epoch=epoch).tolist()]
    position, seen = 0, []
    while position < len(whole):
        ranks, micro_items, accumulate = data.draw(SMALL), data.draw(SMALL), data.draw(st.integers(1, 3))
        steps = data.draw(st.integers(1, 4))
        plans = [
            _rank_steps(
                num_items,
                ranks=ranks,
                rank=rank,
                micro_items=micro_items,
                accumulate=accumulate,
                position=position,
                steps=steps,
            )
            for rank in range(ranks)
        ]
        for step in range(steps):
            rounds = zip(*(plan[step].micro_batches for plan in plans), strict=True)
            seen += [i for micro_batches in rounds for micro in micro_batches if micro.items for i in micro.indices]
        position = plans[0][-1].position
        assert len({plan[-1].position for plan in plans}) == 1
    assert seen[: len(whole)] == whole


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
