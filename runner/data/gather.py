"""Whole batches of datasets that consist of tensors, NumPy arrays or Arrow columns, without a call for each item."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy
import torch
from torch import Tensor
from torch.utils.data import StackDataset, Subset, TensorDataset, default_collate

from runner.data.collate import collated

Gather = Callable[[list[int]], Any]
"""From indices to the batch that default_collate makes of the items."""

DTYPES = {
    "bool",
    "uint8",
    "int8",
    "int16",
    "int32",
    "int64",
    "float16",
    "float32",
    "float64",
    "complex64",
    "complex128",
}
"""Of arrays that become tensors of the same dtype, whether row by row or at once."""
PLAIN_FORMATS = (None, "numpy", "torch")
"""Of Hugging Face datasets. A format of the user's is a function that may draw random numbers."""


def gather_function(dataset: Any) -> Gather | None:
    """How to read batches of a dataset at once; None if its items must be read and collated.

    Only of types whose items are known to be rows, and to draw no random numbers. A subclass may read otherwise.
    """
    if type(dataset) is Tensor:
        return _rows_of_tensor(dataset)
    if isinstance(dataset, numpy.ndarray):
        return _rows_of_array(dataset)
    if type(dataset) is TensorDataset:
        return _together([*dataset.tensors])
    if type(dataset) is StackDataset:
        parts = dataset.datasets
        return _by_name(parts) if isinstance(parts, Mapping) else _together([*parts])
    if type(dataset) is Subset:
        return _some(dataset)
    if type(dataset).__module__ == "datasets.arrow_dataset" and dataset.format["type"] in PLAIN_FORMATS:
        return _columns(dataset)
    return None


def _rows_of_tensor(tensor: Tensor) -> Gather | None:
    if tensor.device.type != "cpu" or tensor.layout is not torch.strided or tensor.requires_grad or not tensor.dim():
        return None
    return lambda indices: tensor[torch.tensor(indices)]


def _rows_of_array(array: "numpy.ndarray[Any, Any]") -> Gather | None:
    if type(array) not in (numpy.ndarray, numpy.memmap) or not _has_tensors(array):
        return None
    plain = numpy.asarray(array)
    return lambda indices: torch.from_numpy(plain[indices])


def _has_tensors(array: "numpy.ndarray[Any, Any]") -> bool:
    return array.ndim > 0 and array.dtype.name in DTYPES and array.dtype.isnative


def _together(parts: list[Any]) -> Gather | None:
    """Items that are tuples: a list of batches."""
    gathers = [gather_function(part) for part in parts]
    found = [gather for gather in gathers if gather is not None]
    return (lambda indices: [gather(indices) for gather in found]) if len(found) == len(parts) else None


def _by_name(parts: Mapping[str, Any]) -> Gather | None:
    gather = _together([*parts.values()])
    return gather and (lambda indices: dict(zip(parts, gather(indices), strict=True)))


def _some(subset: "Subset[Any]") -> Gather | None:
    gather, its_indices = gather_function(subset.dataset), subset.indices
    return gather and (lambda indices: gather([its_indices[index] for index in indices]))


def _columns(dataset: Any) -> Gather:
    """Of a Hugging Face dataset, whose own `__getitems__` divides the columns into rows."""

    def gather(indices: list[int]) -> Any:
        columns = dataset[indices]
        try:
            return {name: _column(column) for name, column in columns.items()}
        except (RuntimeError, TypeError, ValueError):  # the rows tell which of them differ
            return collated(default_collate, dataset.__getitems__(indices), indices=indices)

    return gather


def _column(column: Any) -> Any:
    if type(column) is Tensor:
        return column
    if type(column) is numpy.ndarray and _has_tensors(column):
        return torch.from_numpy(column)
    return default_collate([*column])
