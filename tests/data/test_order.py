"""Law 5: the order of items is a pure function of (seed, epoch)."""

import torch

from runner.data.order import Sequential, Shuffled, order_of, permutation


def test_an_epoch_is_a_permutation_that_differs_by_epoch_and_seed() -> None:
    first = permutation(50, seed=0, epoch=0).tolist()
    assert sorted(first) == list(range(50))
    assert first == permutation(50, seed=0, epoch=0).tolist()
    assert first != permutation(50, seed=0, epoch=1).tolist()
    assert first != permutation(50, seed=1, epoch=0).tolist()


def test_the_permutation_is_the_one_that_runs_so_far_were_made_with() -> None:
    """Resuming an older run depends on it, so the numbers stand here."""
    assert permutation(8, seed=5, epoch=0).tolist() == [3, 1, 2, 4, 5, 6, 7, 0]
    assert Shuffled(8, seed=5).indices(0, 2, 5).tolist() == [3, 1, 2, 4, 5, 6, 7, 0][2:5]


def test_drawing_an_order_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    permutation(50, seed=0, epoch=0)
    assert torch.equal(torch.rand(2), expected)


def test_any_slice_of_any_epoch_can_be_asked_for_in_any_order() -> None:
    order = order_of(10, seed=1, shuffle=True)
    for epoch, start, stop in ((1, 2, 6), (0, 0, 10), (1, 6, 10), (3, 0, 1), (0, 4, 4)):
        assert order.indices(epoch, start, stop).tolist() == permutation(10, seed=1, epoch=epoch)[start:stop].tolist()


def test_without_shuffling_every_epoch_is_in_the_datasets_order() -> None:
    assert isinstance(order_of(10, seed=1, shuffle=False), Sequential)
    assert order_of(10, seed=1, shuffle=False).indices(7, 3, 6).tolist() == [3, 4, 5]
