"""Law 5: the order of items is a pure function of (seed, epoch, position), cut among the ranks without loss."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from runner.data.order import Order, epoch_order, once, split

SMALL = st.integers(1, 7)


def test_an_epoch_is_a_permutation_that_differs_by_epoch_and_seed():
    first = epoch_order(50, seed=0, epoch=0).tolist()
    assert sorted(first) == list(range(50))
    assert first == epoch_order(50, seed=0, epoch=0).tolist()
    assert first != epoch_order(50, seed=0, epoch=1).tolist()
    assert first != epoch_order(50, seed=1, epoch=0).tolist()


def test_drawing_an_order_leaves_the_global_generator_alone():
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    epoch_order(50, seed=0, epoch=0)
    assert torch.equal(torch.rand(2), expected)


def test_a_short_step_is_cut_evenly_and_a_rank_without_items_runs_along():
    assert split(8, ranks=2, micro_items=2) == [(0, 2), (2, 2), (4, 2), (6, 2)]
    assert split(5, ranks=2, micro_items=4) == [(0, 3), (3, 2)]
    assert split(1, ranks=2, micro_items=4) == [(0, 1), (0, 0)]


@given(items=st.integers(1, 40), ranks=SMALL, micro_items=SMALL)
def test_a_cut_covers_every_item_once_with_equally_many_slots_for_each_rank(items, ranks, micro_items):
    slots = split(items, ranks=ranks, micro_items=micro_items)
    assert len(slots) % ranks == 0
    assert [first + offset for first, length in slots for offset in range(length)] == list(range(items))
    assert max(length for _, length in slots) <= micro_items
    assert max(length for _, length in slots) - min(length for _, length in slots) <= 1


def _rank_steps(num_items, *, ranks, rank, micro_items, accumulate, position, steps, shuffle=True):
    step_items = ranks * micro_items * accumulate
    order = Order(num_items, step_items, micro_items, rank, ranks, seed=5, shuffle=shuffle)
    plans = order.steps_from(position)
    return [next(plans) for _ in range(steps)]


@given(num_items=st.integers(1, 60), ranks=SMALL, micro_items=SMALL, accumulate=st.integers(1, 3))
@settings(deadline=None)
def test_all_ranks_together_read_every_item_once_an_epoch(num_items, ranks, micro_items, accumulate):
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
            seen += [i for plan in plans for share in plan.micro_batches if share.items for i in share.indices]
            assert plans[-1].position == (epoch + 1) * num_items
        assert sorted(seen) == list(range(num_items))


@given(data=st.data(), num_items=st.integers(1, 50), epochs=st.integers(1, 3))
@settings(deadline=None, max_examples=200)
def test_stopping_anywhere_and_going_on_at_another_world_size_reads_the_same_global_order(data, num_items, epochs):
    """K3 in small: random worlds follow each other; together they read what one uninterrupted world of one reads."""
    whole = [i for epoch in range(epochs) for i in epoch_order(num_items, seed=5, epoch=epoch).tolist()]
    position, read = 0, []
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
            read += [i for shares in rounds for share in shares if share.items for i in share.indices]
        position = plans[0][-1].position
        assert len({plan[-1].position for plan in plans}) == 1
    assert read[: len(whole)] == whole


def test_evaluation_reads_every_item_once_in_its_own_order():
    for ranks in (1, 2, 3):
        shares = [list(once(10, micro_items=4, rank=rank, ranks=ranks)) for rank in range(ranks)]
        assert len({len(share) for share in shares}) == 1
        counted = [i for rounds in zip(*shares, strict=True) for share in rounds if share.items for i in share.indices]
        assert counted == list(range(10))
