"""Reading items: the same ones in the rank itself and in workers, placed and counted."""

import random
from collections import UserDict
from typing import Any, NamedTuple

import numpy
import pytest
import torch

from runner.data.loader import num_items, read, to_device
from runner.data.order import Order
from runner.errors import DataError

CPU = torch.device("cpu")


class Squares:
    """item i is i², and a random number drawn while it is read."""

    def __len__(self):
        return 10

    def __getitem__(self, index):
        return {"square": index**2, "noise": torch.rand(()).item() + random.random() + numpy.random.rand()}


class ManySquares(Squares):
    def __getitems__(self, indices):
        return [{"square": index**2, "noise": 0.0} for index in indices]


def _shares(*, rank=0, ranks=1, steps=4, position=0):
    plans = Order(10, 4, 2, rank, ranks, seed=0, shuffle=True).steps_from(position)
    return [share for _ in range(steps) for share in next(plans).micro_batches]


def _read(dataset, shares, workers):
    batches = read(dataset, shares, collate=None, device=CPU, workers=workers, prefetch=2, pinned=False, seed=7)
    return list(batches)


@pytest.mark.parametrize("dataset", [Squares(), ManySquares()])
def test_workers_hand_out_what_the_rank_itself_reads(dataset):
    shares = _shares()
    alone, ahead = _read(dataset, shares, 0), _read(dataset, shares, 2)
    assert [batch.items for batch in alone] == [batch.items for batch in ahead] == [share.items for share in shares]
    for one, other, share in zip(alone, ahead, shares, strict=True):
        assert one.batch["square"].tolist() == other.batch["square"].tolist() == [i**2 for i in share.indices]


def test_random_numbers_drawn_in_workers_depend_on_the_item_and_epoch_alone():
    def noise(workers, **kwargs):
        shares = _shares(**kwargs)
        batches = _read(Squares(), shares, workers)
        drawn = [batch.batch["noise"].tolist() for batch in batches]
        keys = [(share.epoch, index) for share in shares for index in share.indices]
        return dict(zip(keys, [value for values in drawn for value in values], strict=True))

    one, two = noise(1), noise(2)
    assert one == two
    resumed = noise(2, position=8, steps=2)
    assert resumed.items() <= one.items()
    assert len(set(one.values())) == len(one), "an item draws anew in each epoch"


def test_readers_leave_the_ranks_own_generator_alone():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    _read(ManySquares(), _shares(), 1)
    assert torch.equal(torch.rand(3), expected)


def test_a_dataset_without_length_is_refused():
    with pytest.raises(DataError, match=r"'train' dataset \(generator\) has no length.*Return a map-style dataset"):
        num_items((i for i in range(3)), "train")


def test_an_empty_dataset_is_refused():
    with pytest.raises(DataError, match="'eval' dataset is empty"):
        num_items([], "eval")


class Pair(NamedTuple):
    x: torch.Tensor
    name: str


class Encoding(UserDict[str, Any]):
    """A batch object that moves itself, as transformers' BatchEncoding does."""

    def to(self, device, *, non_blocking):
        return Encoding({key: value.to(device, non_blocking=non_blocking) for key, value in self.items()})


def test_nested_batches_keep_their_shape_when_they_move():
    meta = torch.device("meta")
    batch = {"pair": Pair(torch.ones(2), "a"), "list": [torch.ones(1), 3], "own": Encoding(x=torch.ones(3))}
    moved = to_device(batch, meta, non_blocking=False)
    assert (moved["pair"].x.device, moved["pair"].name) == (meta, "a")
    assert (moved["list"][0].device, moved["list"][1]) == (meta, 3)
    assert moved["own"]["x"].device == meta
