"""safetensors: one tensor [items, ...] for each output. Written piece by piece; only a header is held for the whole."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from runner.errors import HookError
from runner.prediction.copying import new_file
from runner.prediction.formats import Columns

OTHER = "Write it to .jsonl or .parquet"


class _Stored(NamedTuple):
    dtype: str
    shape: list[int]
    start: int
    """The byte of the file at which it starts."""
    bytes: int


def write(path: Path, batches: Sequence[Columns]) -> None:
    """Write a new file."""
    from safetensors.torch import save

    columns = {name: _joined([batch[name] for batch in batches], name) for name in batches[0]}
    with new_file(path) as file:
        file.write(save({name: value.contiguous() for name, value in columns.items()}))


def join(parts: Sequence[Path], path: Path) -> None:
    """Write the tensors of all parts, one after the other."""
    stored = [_read_header(part) for part in parts]
    entries: dict[str, Any] = {}
    # Largest elements first, as safetensors' own writer does, so that every tensor is aligned to its element size.
    names = sorted(stored[0], key=lambda name: -_item_bytes(stored[0][name]))
    end = 0
    for name in names:
        found = [one.get(name) for one in stored]
        _check_equal(name, found)
        first, items = stored[0][name], sum(one.shape[0] for one in found if one is not None)
        start, end = end, end + sum(one.bytes for one in found if one is not None)
        entries[name] = {"dtype": first.dtype, "shape": [items, *first.shape[1:]], "data_offsets": [start, end]}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with new_file(path) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            for part, tensors in zip(parts, stored, strict=True):
                _copy(part, tensors[name], file)


def _joined(values: Sequence[Tensor | Sequence[Any]], name: str) -> Tensor:
    tensors = [_as_tensor(value, name) for value in values]
    if len({tensor.shape[1:] for tensor in tensors}) > 1:
        raise _unequal(name, [list(tensor.shape[1:]) for tensor in tensors])
    return torch.cat(tensors)


def _as_tensor(values: Tensor | Sequence[Any], name: str) -> Tensor:
    if isinstance(values, Tensor):
        return values
    if all(isinstance(one, bool | int | float) for one in values):
        return torch.tensor(values)
    kinds = ", ".join(sorted({type(one).__name__ for one in values}))
    raise HookError(f"the output {name!r} is a list of {kinds}, but safetensors holds tensors only. {OTHER}.")


def _check_equal(name: str, found: Sequence[_Stored | None]) -> None:
    shapes = [one.shape[1:] for one in found if one is not None]
    if len(shapes) < len(found) or any(shape != shapes[0] for shape in shapes):
        raise _unequal(name, shapes)


def _unequal(name: str, shapes: Sequence[Sequence[int]]) -> HookError:
    distinct = " and ".join(str(list(shape)) for shape in dict.fromkeys(map(tuple, shapes)))
    return HookError(
        f"the output {name!r} has items of the shapes {distinct}, which do not make one tensor. {OTHER}, or pad every "
        "item to one length."
    )


def _item_bytes(one: _Stored) -> int:
    return one.bytes // max(1, math.prod(one.shape))


def _read_header(part: Path) -> Mapping[str, _Stored]:
    with part.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    return {
        name: _Stored(
            one["dtype"], one["shape"], 8 + length + one["data_offsets"][0], -int.__sub__(*one["data_offsets"])
        )
        for name, one in header.items()
    }


def _copy(part: Path, one: _Stored, file: Any) -> None:
    with part.open("rb") as opened:
        opened.seek(one.start)
        left = one.bytes
        while left:
            piece = opened.read(min(left, 1 << 20))
            file.write(piece)
            left -= len(piece)
