"""What is said of items that no batch can be made of, wherever they are collated."""

from typing import Any

import numpy
import pytest
import torch
from torch.utils.data import default_collate

from runner.data.collate import collated
from runner.data.loader import load
from runner.errors import DataError
from runner.protocols import LoaderOptions, MicroBatchIndices
from tests.data.streams import CPU, Plain, source

UNEQUAL = [torch.ones(3), torch.ones(3), torch.ones(5)]


@pytest.mark.parametrize(
    ("items", "where"),
    [
        (UNEQUAL, r": \[3\] and \[5\]"),
        ([{"x": [1, item]} for item in UNEQUAL], r" at \['x'\]\[1\]: \[3\] and \[5\]"),
        ([(item.numpy(), 1) for item in UNEQUAL], r" at \[0\]: \[3\] and \[5\]"),
        ([[1, 2], [1, 2], [1]], ": a list of 2 and a list of 1"),
        ([{"x": 1}, {"x": 1}, {"y": 1}], r": keys \['x'\] and keys \['y'\]"),
        ([numpy.zeros(2), numpy.zeros(2), "text"], r": \[2\] and a str"),
    ],
)
def test_items_of_unequal_shape_are_named(items: Any, where: str) -> None:
    with pytest.raises(
        DataError, match=rf"^items 0 and 2 of a micro-batch of the stream have unequal shapes{where}, so"
    ):
        collated(default_collate, items)
    with pytest.raises(DataError, match=rf"^items 7 and 9 of the dataset have unequal shapes{where}.*collate=pad"):
        collated(default_collate, items, indices=[7, 8, 9])


def test_an_error_with_another_reason_stays_as_it_is() -> None:
    with pytest.raises(TypeError, match="default_collate"):
        collated(default_collate, [object(), object()])

    def failing(items: Any) -> None:
        raise ValueError("of the user's own")

    with pytest.raises(ValueError, match="of the user's own"):
        collated(failing, UNEQUAL)


def forget(items: Any) -> None:
    default_collate(items)


@pytest.mark.parametrize("workers", [0, 1])
def test_both_are_told_by_workers_too(workers: int) -> None:
    def read(dataset: Any, collate: Any) -> None:
        options = LoaderOptions(collate=collate, device=CPU, workers=workers, prefetch=2, pin_memory=False)
        list(load(dataset, [MicroBatchIndices([2, 0, 1], 3, 0)], options, seed=0))

    with pytest.raises(DataError, match=r"^items 2 and 0 of the dataset have unequal shapes"):
        read(UNEQUAL, default_collate)
    with pytest.raises(DataError, match=r"^the data hook's collate returned None"):
        read([1, 2, 3], forget)
    with pytest.raises(DataError, match=r"^the data hook's collate returned None"):
        next(iter(source(Plain(*range(8)), collate=forget, workers=workers)))
