"""JSON lines: an object for each item. Tensors become numbers and lists; nan and infinity become null."""

import json
import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from runner import durable
from runner.errors import HookError
from runner.prediction.copying import new_file
from runner.prediction.formats import Columns


def write(path: Path, batches: Sequence[Columns]) -> None:
    """Write a new file."""
    durable.write_new(path, "".join(line for batch in batches for line in _lines(batch)))


def join(parts: Sequence[Path], path: Path) -> None:
    """Write the lines of all parts."""
    with new_file(path) as file:
        for part in parts:
            with part.open("rb") as opened:
                shutil.copyfileobj(opened, file)


def _lines(batch: Columns) -> Iterator[str]:
    columns = {name: _plain(values, name) for name, values in batch.items()}
    for row in zip(*columns.values(), strict=True):
        yield json.dumps(dict(zip(columns, row, strict=True)), ensure_ascii=False, allow_nan=False) + "\n"


def _plain(value: Any, name: str) -> Any:
    """What JSON can represent."""
    if isinstance(value, Tensor):
        return _plain(value.tolist(), name)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | int):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(inner, name) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner, name) for inner in value]
    rule = "Return numbers, text, tensors, or lists and mappings of them."
    raise HookError(f"the output {name!r} holds a {type(value).__name__}, which JSON cannot represent. {rule}")
