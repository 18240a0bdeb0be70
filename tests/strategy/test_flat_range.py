"""A range of a tensor's elements as boxes of a checkpoint: all of them, once, each in its place."""

import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from runner.checkpoint.rank_files import RankFiles
from runner.checkpoint.save import Earlier, Written
from runner.protocols import State
from runner.storage.read import read_tensors
from runner.strategy.common.boxed import Box
from runner.strategy.deepspeed.flat_range import FlatRange, boxes
from runner.world.solo import SoloWorld

WORLD = SoloWorld(torch.device("cpu"))


@st.composite
def ranges(draw: Any) -> Any:
    shape = tuple(draw(st.lists(st.integers(1, 4), max_size=4)))
    ends = sorted(draw(st.integers(0, math.prod(shape))) for _ in range(2))
    return shape, *ends


def _itself(tensor: torch.Tensor) -> torch.Tensor:
    return tensor


@given(ranges())
def test_boxes_hold_each_element_of_the_range_once_and_in_order(case: Any) -> None:
    shape, start, stop = case
    whole = torch.arange(math.prod(shape)).view(shape)
    found: list[float] = []
    for box in boxes(shape, start, stop):
        assert box.at == len(found)
        part = whole[tuple(slice(o, o + s) for o, s in zip(box.offsets, box.sizes, strict=True))]
        found += part.reshape(-1).tolist()
    assert found == list(range(start, stop))
    assert len(boxes(shape, start, stop)) <= max(1, 2 * len(shape) - 1)


def test_a_range_of_a_matrix_is_the_end_of_a_row_whole_rows_and_the_beginning_of_one() -> None:
    assert boxes((4, 3), 2, 10) == [Box((0, 2), (1, 1), 0), Box((1, 0), (2, 3), 1), Box((3, 0), (1, 1), 7)]


@pytest.mark.parametrize("cut", [0, 1, 7, 11, 30])
def test_what_one_cut_wrote_another_reads(tmp_path: Path, cut: int) -> None:
    """Written as a whole, read as two ranges; and back."""
    whole = torch.arange(30.0).view(5, 3, 2)
    metadata, files = written(tmp_path, whole)
    parts = [torch.zeros(cut), torch.zeros(30 - cut)]
    for part, start in zip(parts, (0, cut), strict=True):
        one = FlatRange(partial(_itself, part), shape=(5, 3, 2), start=start, length=len(part), dtype=torch.float32)
        read_tensors(WORLD, tmp_path, {"model.w": one}, metadata=metadata, files=files)
    assert torch.equal(torch.cat(parts), whole.flatten())


def written(directory: Path, tensor: torch.Tensor) -> Written:
    """Write a tensor under the name that it has as a parameter."""
    state = State(models={"model": {"w": tensor}})
    return RankFiles(link_frozen=True).live(WORLD, directory, state)(WORLD, directory, Earlier(directory, {}))


def test_a_range_is_written_as_the_whole(tmp_path: Path) -> None:
    """One rank that owns all of a tensor, cut nowhere."""
    flat = torch.arange(6.0)
    one = FlatRange(lambda: flat, shape=(2, 3), start=0, length=6, dtype=torch.float32)
    metadata, files = written(tmp_path, one)
    whole = torch.zeros(2, 3)
    read_tensors(WORLD, tmp_path, {"model.w": whole}, metadata=metadata, files=files)
    assert torch.equal(whole, flat.view(2, 3))
    assert repr(one).startswith("FlatRange(shape=[2, 3]")


def test_nothing_is_computed_with_a_range() -> None:
    one = FlatRange(lambda: torch.zeros(2), shape=(2,), start=0, length=2, dtype=torch.float32)
    with pytest.raises(NotImplementedError, match="only a checkpoint can read it"):
        one + 1
