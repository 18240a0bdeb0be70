"""order=weighted: what the dataset must give, and what an epoch then has."""

from dataclasses import dataclass
from typing import Any

import pytest

from runner.errors import DataError
from runner.order.weighted import Weighted


@dataclass
class Items:
    """Four items, and whatever they weigh."""

    weights: Any = (3, 1, 0, 2)

    def __len__(self) -> int:
        return 4


@pytest.mark.parametrize(
    ("option", "items"),
    [
        (Weighted(), 4),
        (Weighted(items=9), 9),
        (Weighted(replacement=False), 3),
        (Weighted(replacement=False, items=2), 2),
    ],
)
def test_an_epoch_has_the_items_that_are_asked_for(option: Weighted, items: int) -> None:
    order = option.build(Items(), seed=0)
    assert order.num_items == items
    drawn = order.indices(0, 0, items)
    assert len(drawn) == items
    assert 2 not in drawn
    assert option.replacement or len(set(drawn.tolist())) == items


@pytest.mark.parametrize(
    ("option", "weights", "message"),
    [
        (Weighted(weights="mass"), (1, 1, 1, 1), r"has no attribute 'mass': one number for each item\. Name another"),
        (Weighted(), ("a", 1, 1, 1), r"'weights' of the dataset \(Items\) must hold numbers, one for each item"),
        (Weighted(), (1, 2), r"the dataset \(Items\) has 4 items, but its 'weights' have the shape \[2\]"),
        (Weighted(), (1, 1, -1, 1), r"must be finite numbers, none below 0 and one above 0 at least"),
        (Weighted(), (1, 1, float("nan"), 1), r"must be finite numbers"),
        (Weighted(), (0, 0, 0, 0), r"must be finite numbers"),
        (Weighted(replacement=False, items=4), (1, 1, 0, 1), r"order\.items=4 .* only 3 have a weight above 0"),
    ],
)
def test_weights_that_cannot_be_used_are_told(option: Weighted, weights: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        option.build(Items(weights), seed=0)


@pytest.mark.parametrize("items", [0, -1])
def test_an_epoch_has_at_least_one_item(items: int) -> None:
    with pytest.raises(ValueError, match="must be at least 1, or null"):
        Weighted(items=items)
