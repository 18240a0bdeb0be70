"""Boxes fill a whole if each point of it is in exactly one of them."""

import numpy
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from runner.storage.tiling import Box, fills

SIZES = st.integers(0, 4)


@st.composite
def whole_and_boxes(draw: st.DrawFn) -> tuple[tuple[int, ...], list[Box]]:
    """A shape of up to three dims, and boxes inside it."""
    shape = tuple(draw(st.lists(SIZES, max_size=3)))
    boxes = []
    for _ in range(draw(st.integers(0, 4))):
        offset = tuple(draw(st.integers(0, size)) for size in shape)
        boxes.append((offset, tuple(draw(st.integers(0, size - at)) for size, at in zip(shape, offset, strict=True))))
    return shape, boxes


@st.composite
def whole_and_cuts(draw: st.DrawFn) -> tuple[tuple[int, ...], list[Box]]:
    """A shape, and the boxes into which a plane after the other has cut it."""
    shape = tuple(draw(st.lists(st.integers(1, 4), min_size=1, max_size=3)))
    boxes: list[Box] = [((0,) * len(shape), shape)]
    for _ in range(draw(st.integers(0, 4))):
        offset, lengths = boxes.pop(draw(st.integers(0, len(boxes) - 1)))
        dim = draw(st.integers(0, len(shape) - 1))
        at = draw(st.integers(0, lengths[dim]))
        rest = (*offset[:dim], offset[dim] + at, *offset[dim + 1 :])
        boxes.append((offset, (*lengths[:dim], at, *lengths[dim + 1 :])))
        boxes.append((rest, (*lengths[:dim], lengths[dim] - at, *lengths[dim + 1 :])))
    return shape, boxes


def filled(shape: tuple[int, ...], boxes: list[Box]) -> bool:
    """Count for each point of the whole in how many boxes it is."""
    count = numpy.zeros(shape, dtype=int)
    for offset, lengths in boxes:
        count[tuple(slice(at, at + length) for at, length in zip(offset, lengths, strict=True))] += 1
    return bool((count == 1).all())


@given(whole_and_boxes() | whole_and_cuts())
@example(((), []))
@example(((), [((), ())]))
@example(((), [((), ()), ((), ())]))
@example(((2, 2), [((0, 0), (2, 1)), ((0, 0), (2, 1))]))
@example(((2, 2), [((0, 0), (1, 1)), ((1, 1), (1, 1)), ((0, 1), (1, 1)), ((1, 0), (1, 1))]))
@example(((0, 3), []))
def test_it_says_what_counting_says(case: tuple[tuple[int, ...], list[Box]]) -> None:
    shape, boxes = case
    assert fills(boxes, shape) == filled(shape, boxes)


@pytest.mark.timeout(20)
def test_many_boxes_take_linear_time() -> None:
    rows = [((row, 0), (1, 8)) for row in range(20_000)]
    assert fills(rows, (20_000, 8))
    assert not fills(rows[:-1], (20_000, 8))
    assert not fills([*rows[:-1], rows[0]], (20_000, 8))


def test_a_box_of_very_many_dims_takes_no_time() -> None:
    halves = [((half,) + (0,) * 59, (1,) + (2,) * 59) for half in (0, 1)]
    assert fills(halves, (2,) * 60)
    assert not fills([((0,) * 60, (1,) * 60)], (2,) * 60)
