"""Batches read at once: those that a DataLoader makes of the same dataset, item by item."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from torch.utils.data import DataLoader, StackDataset, Subset, TensorDataset, default_collate

from runner.data.gather import DTYPES, gather_function
from runner.data.loader import fetch_function
from runner.errors import DataError
from tests.data.batches import assert_same, options

INDICES = [5, 0, 3, 3, -1]
NUMBERS = torch.arange(12.0).reshape(6, 2)
CLASSES = torch.arange(6)
ARRAY = NUMBERS.numpy()


def from_disk(path: Path) -> Any:
    numpy.save(path / "array.npy", ARRAY)
    return numpy.load(path / "array.npy", mmap_mode="r")


def hugging_face(form: str | None) -> Any:
    datasets = pytest.importorskip("datasets")
    columns = {
        "text": [*"abcdef"],
        "number": [*range(6)],
        "row": NUMBERS.tolist(),
        "inner": [{"x": float(i), "y": [i, -i]} for i in range(6)],
    }
    return datasets.Dataset.from_dict(columns).with_format(form)


def array(kind: str, dimensions: int) -> Any:
    return (ARRAY if dimensions == 2 else ARRAY[:, 0]).astype(kind)


MADE: dict[str, Callable[[Path], Any]] = {
    "a tensor": lambda path: NUMBERS,
    "a tensor of numbers": lambda path: CLASSES,
    "tensors": lambda path: TensorDataset(NUMBERS, CLASSES),
    "half of it": lambda path: Subset(TensorDataset(NUMBERS, CLASSES), [5, 4, 3, 2, 1, 0]),
    "under names": lambda path: StackDataset(image=NUMBERS, target=Subset(CLASSES, [*range(6)])),
    "in a tuple": lambda path: StackDataset(TensorDataset(NUMBERS, CLASSES), CLASSES),
    "a file": from_disk,
    "Arrow": lambda path: hugging_face(None),
    "Arrow as torch": lambda path: hugging_face("torch"),
    "Arrow as numpy": lambda path: hugging_face("numpy"),
}


def assert_read_alike(dataset: Any) -> None:
    gather = gather_function(dataset)
    assert gather is not None
    (batch,) = DataLoader(dataset, batch_sampler=[INDICES])
    assert_same(gather(INDICES), batch)


@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")  # torch, of the rows that it is given
@pytest.mark.parametrize("name", MADE)
def test_what_is_read_at_once_equals_the_batch_of_a_data_loader(name: str, tmp_path: Path) -> None:
    assert_read_alike(MADE[name](tmp_path))


@pytest.mark.parametrize("kind", sorted(DTYPES))
def test_arrays_have_the_dtypes_that_their_rows_would_have(kind: str) -> None:
    for dimensions in (1, 2):
        assert_read_alike(array(kind, dimensions))


def test_a_batch_is_no_part_of_the_dataset() -> None:
    for dataset in (numbers := NUMBERS.clone(), numbers.numpy()):
        gather = gather_function(dataset)
        assert gather is not None
        gather([0, 1, 2]).zero_()
        assert torch.equal(numbers, NUMBERS)


class Doubled(TensorDataset):
    def __getitem__(self, index: Any) -> Any:
        return tuple(2 * part for part in super().__getitem__(index))


class Rows(numpy.ndarray[Any, Any]):
    pass


@pytest.mark.parametrize(
    "dataset",
    [
        Doubled(NUMBERS, CLASSES),
        Subset(Doubled(NUMBERS), [2, 1, 0]),
        ARRAY.view(Rows),
        ARRAY.astype(">f4"),
        numpy.array([*"abcdef"]),
        numpy.arange(6).astype("uint64"),
        NUMBERS.clone().requires_grad_(),
        NUMBERS.to_sparse(),
        torch.tensor(1.0),
        [1, 2, 3],
        NUMBERS.tolist(),
    ],
    ids=lambda dataset: type(dataset).__name__,
)
def test_whatever_may_read_its_items_otherwise_is_read_item_by_item(dataset: Any) -> None:
    assert gather_function(dataset) is None


def test_a_collate_of_ones_own_gets_items() -> None:
    fetch = fetch_function(TensorDataset(NUMBERS, CLASSES), options(collate=len), seed=0)
    assert fetch(INDICES, 0) == 5


def test_a_transform_of_a_hugging_face_dataset_is_read_row_by_row() -> None:
    dataset = hugging_face(None).with_transform(lambda rows: {"number": [-one for one in rows["number"]]})
    assert gather_function(dataset) is None
    assert fetch_function(dataset, options(), seed=0)(INDICES, 0)["number"].tolist() == [-5, 0, -3, -3, -5]


def test_rows_of_arrow_that_cannot_be_stacked_are_told_by_index() -> None:
    datasets = pytest.importorskip("datasets")
    ragged = datasets.Dataset.from_dict({"row": [[1.0], [1.0], [1.0, 2.0]]}).with_format("torch")
    with pytest.raises(DataError, match=r"items 1 and 2 of the dataset have unequal shapes at \['row'\]: \[1\] and"):
        fetch_function(ragged, options(collate=default_collate), seed=0)([1, 2], 0)
