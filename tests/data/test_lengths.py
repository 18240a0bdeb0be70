"""batch.cut=by_length: where lengths come from, and what is told where they cannot be used."""

from dataclasses import dataclass
from typing import Any

import numpy
import pytest

from runner.data.lengths import lengths_of
from runner.errors import DataError
from runner.protocols import Data


@dataclass
class Sentences:
    """Three items, and what they say of their lengths."""

    lengths: Any = None

    def __len__(self) -> int:
        return 3


def test_the_data_hooks_lengths_win_over_the_datasets() -> None:
    assert lengths_of(Data(train=Sentences([1, 2, 3])), micro_tokens=None).tolist() == [1, 2, 3]
    assert lengths_of(Data(train=Sentences([1, 2, 3]), lengths=[4, 5, 6]), micro_tokens=6).tolist() == [4, 5, 6]
    assert lengths_of(Data(train=Sentences(), lengths=numpy.array([4, 5, 6])), micro_tokens=6).tolist() == [4, 5, 6]


@pytest.mark.parametrize(
    ("lengths", "micro_tokens", "message"),
    [
        (None, None, r"needs the length of each item, which Sentences does not have\. Give lengths: runner\.Data"),
        ([1, 2], None, r"must be 3 whole numbers, none negative: got int64 values of shape \[2\]"),
        ([1, 2, 2.5], None, r"must be 3 whole numbers, none negative: got float64"),
        ([1, -2, 2], None, r"must be 3 whole numbers, none negative"),
        ([7, 9, 8], 8, r"item 1 of the training dataset has length 9, more than batch\.micro_tokens=8"),
    ],
)
def test_lengths_that_cannot_be_used_are_told(lengths: Any, micro_tokens: int | None, message: str) -> None:
    with pytest.raises(DataError, match=message):
        lengths_of(Data(train=Sentences(lengths)), micro_tokens=micro_tokens)
