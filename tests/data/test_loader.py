"""Loading items: the same ones in the rank itself and in workers, placed and counted."""

import multiprocessing
import os
import random
from typing import Any

import numpy
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset, default_collate

from runner.data.loader import load
from runner.data.order import Shuffled
from runner.data.steps import RankSteps
from runner.protocols import LoaderOptions
from tests.data.batches import assert_same

CPU = torch.device("cpu")


class Squares:
    """item i is i², and a random number drawn while it is read."""

    def __len__(self) -> Any:
        return 10

    def __getitem__(self, index: Any) -> Any:
        return {"square": index**2, "noise": torch.rand(()).item() + random.random() + numpy.random.rand()}


class ManySquares(Squares):
    def __getitems__(self, indices: Any) -> Any:
        return [{"square": index**2, "noise": 0.0} for index in indices]


def _micro_batches(*, rank: int = 0, ranks: int = 1, steps: int = 4, position: int = 0) -> Any:
    order = Shuffled(10, seed=0)
    plans = RankSteps(order=order, step_items=4, micro_items=2, rank=rank, ranks=ranks).starting_at(position)
    return [micro for _ in range(steps) for micro in next(plans).micro_batches]


def _load(dataset: Any, micro_batches: Any, workers: Any) -> Any:
    options = LoaderOptions(collate=default_collate, device=CPU, workers=workers, prefetch=2, pin_memory=False)
    return list(load(dataset, micro_batches, options, seed=7))


@pytest.mark.parametrize("dataset", [Squares(), ManySquares()])
def test_workers_hand_out_what_the_rank_itself_reads(dataset: Any) -> None:
    micro_batches = _micro_batches()
    alone, ahead = _load(dataset, micro_batches, 0), _load(dataset, micro_batches, 2)
    assert (
        [batch.items for batch in alone] == [batch.items for batch in ahead] == [micro.items for micro in micro_batches]
    )
    for one, other, micro in zip(alone, ahead, micro_batches, strict=True):
        assert one.batch["square"].tolist() == other.batch["square"].tolist() == [i**2 for i in micro.indices]


def test_random_numbers_drawn_in_workers_depend_on_the_item_and_epoch_alone() -> None:
    def noise(workers: Any, **kwargs: Any) -> Any:
        micro_batches = _micro_batches(**kwargs)
        batches = _load(Squares(), micro_batches, workers)
        drawn = [batch.batch["noise"].tolist() for batch in batches]
        keys = [(micro.epoch, index) for micro in micro_batches for index in micro.indices]
        return dict(zip(keys, [value for values in drawn for value in values], strict=True))

    one, two = noise(1), noise(2)
    assert one == two
    resumed = noise(2, position=8, steps=2)
    assert resumed.items() <= one.items()
    assert len(set(one.values())) == len(one), "an item draws anew in each epoch"


def test_readers_leave_the_ranks_own_generator_alone() -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    _load(ManySquares(), _micro_batches(), 1)
    assert torch.equal(torch.rand(3), expected)


class Large:
    """Items too large to be sent in the message that tells of them."""

    def __len__(self) -> Any:
        return 10

    def __getitem__(self, index: Any) -> Any:
        return torch.full((40_000,), float(index)), index


class ManyPairs(Large):
    def __getitem__(self, index: Any) -> Any:
        return {"pair": numpy.array([index, -index])}

    def __getitems__(self, indices: Any) -> Any:
        return [self[index] for index in indices]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    "dataset", [Large(), ManyPairs(), TensorDataset(torch.arange(20.0).reshape(10, 2), torch.arange(10))]
)
def test_batches_are_those_of_a_data_loader(dataset: Any, workers: Any) -> None:
    for ranks, position, steps in ((1, 0, 4), (2, 4, 3), (4, 8, 2)) if workers == 0 else ((2, 4, 3),):
        for rank in range(ranks):  # a step has 4 items, the last one of an epoch 2
            micro_batches = _micro_batches(rank=rank, ranks=ranks, steps=steps, position=position)
            expected = DataLoader(dataset, batch_sampler=[micro.indices for micro in micro_batches])
            # As a list, so that all of them are in memory together: none may be in the place of another.
            for micro_batch, batch in zip(_load(dataset, micro_batches, workers), expected, strict=True):
                assert_same(micro_batch.batch, batch)


class Dying(Squares):
    def __getitem__(self, index: Any) -> Any:
        os._exit(3)


class Raising(Squares):
    def __getitem__(self, index: Any) -> Any:
        raise ZeroDivisionError("of the user's own")


def test_a_worker_that_died_is_told_and_one_that_raised_shows_its_own_traceback() -> None:
    with pytest.raises(RuntimeError, match=r"^DataLoader worker \(pid.*exited unexpectedly") as died:
        _load(Dying(), _micro_batches(), 1)
    (note,) = died.value.__notes__
    assert note.startswith("A loader worker died while it read items. If it was killed, memory usually ran out: lower")
    with pytest.raises(ZeroDivisionError, match=r"(?s)Original Traceback.*in __getitem__.*of the user's own"):
        _load(Raising(), _micro_batches(), 2)
    assert not multiprocessing.active_children(), "nobody waits for a worker that was never told to end"
