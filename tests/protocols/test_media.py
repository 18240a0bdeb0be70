"""What media must look like, and what is said of what does not."""

from typing import Any

import numpy as np
import pytest

from runner.protocols import Image, Table


@pytest.mark.parametrize(
    ("pixels", "says"),
    [
        (np.zeros((3, 8, 8), np.uint8), r"shape \[3, 8, 8\] must be .* channels first: tensor.permute\(1, 2, 0\)"),
        (np.zeros(8, np.uint8), r"shape \[8\] must be \[height, width\]"),
        (np.zeros((0, 8), np.uint8), r"shape \[0, 8\] must be"),
        (np.zeros((8, 8), np.float32), r"type float32 must be uint8\. From numbers between 0 and 1: \(255 \* pixels\)"),
    ],
)
def test_an_image_that_cannot_be_shown_is_refused(pixels: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Image(pixels=pixels)


def test_a_table_with_a_short_row_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"row 1 of the table has 1 values for 2 columns\. .* use None for missing ones"
    ):
        Table(columns=["a", "b"], rows=[[1, 2], [3]])
