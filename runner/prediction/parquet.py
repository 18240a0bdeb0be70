"""Parquet: a column for each output; a tensor [items, ...] with more dimensions becomes a column of lists."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from runner.errors import HookError
from runner.prediction.copying import new_file
from runner.prediction.formats import Columns

NARROW = (torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2)  # types that Arrow does not have


def write(path: Path, batches: Sequence[Columns]) -> None:
    """Write a new file with one row group for each batch."""
    import pyarrow
    from pyarrow import parquet

    tables = [pyarrow.table({name: _column(values, name) for name, values in batch.items()}) for batch in batches]
    with new_file(path) as file:
        parquet.write_table(_concatenated(tables), file)


def join(parts: Sequence[Path], path: Path) -> None:
    """Write the rows of all parts, one part at a time."""
    import pyarrow
    from pyarrow import parquet

    try:
        schemas = [parquet.read_schema(part) for part in parts]
        schema = pyarrow.unify_schemas(schemas, promote_options="permissive")
    except pyarrow.ArrowException as error:
        raise _unequal(error) from error
    with new_file(path) as file, parquet.ParquetWriter(file, schema) as writer:
        for part in parts:
            writer.write_table(parquet.read_table(part).select(schema.names).cast(schema))


def _concatenated(tables: Sequence[Any]) -> Any:
    import pyarrow

    try:
        return pyarrow.concat_tables(tables, promote_options="permissive")
    except pyarrow.ArrowException as error:
        raise _unequal(error) from error


def _column(values: Tensor | Sequence[Any], name: str) -> Any:
    import pyarrow

    try:
        if not isinstance(values, Tensor):
            return pyarrow.array([one.tolist() if isinstance(one, Tensor) else one for one in values])
        return _nested((values.float() if values.dtype in NARROW else values).contiguous())
    except pyarrow.ArrowException as error:
        rule = "Return numbers, text, tensors, or lists of them."
        raise HookError(f"the output {name!r} cannot be written to Parquet: {error}. {rule}") from error


def _nested(values: Tensor) -> Any:
    """A column of numbers, of lists of numbers, of lists of lists, …"""
    import pyarrow

    column = pyarrow.array(values.flatten().numpy())
    sizes = list(values.shape)
    for depth in range(values.ndim - 1, 0, -1):
        rows = torch.arange(int(torch.tensor(sizes[:depth]).prod()) + 1, dtype=torch.int32)
        column = pyarrow.ListArray.from_arrays((rows * sizes[depth]).numpy(), column)
    return column


def _unequal(error: Exception) -> HookError:
    rule = "Give every micro-batch the same names and types."
    return HookError(f"the outputs of two micro-batches do not make one Parquet table: {error}. {rule}")
