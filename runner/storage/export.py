"""Export the weights of a committed checkpoint for other programs: safetensors, in shards above a size.

    model.safetensors                      or, above the size of a shard,
    model-00001-of-00003.safetensors …     and
    model.safetensors.index.json           {"metadata": {"total_size": bytes}, "weight_map": {tensor: file}}

Names are the model's own; a tied weight is written once, under its first name, as it is in the checkpoint. Shards are
cut as huggingface_hub's split_torch_state_dict_into_shards cuts them. An export needs no process group and no device,
and holds no more than one tensor in memory (and one chunk of it, where a chunk is not a run of whole rows).
"""

import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from runner.durable import sync_directory, unfinished, write_new
from runner.errors import CheckpointError
from runner.protocols.state import MODEL
from runner.storage.decode import OtherFormatError, decode_metadata
from runner.storage.format import SAFETENSORS_TYPES, TensorMetadata
from runner.storage.integrity import verify_sizes
from runner.storage.memory import DTYPES, dtype_name, view_bytes
from runner.storage.names import from_names
from runner.storage.tensors import read_tensor

__all__ = ["FLOATS", "as_exported", "export_weights", "fresh_directory", "models_in"]

FLOATS = ("float64", "float32", "bfloat16", "float16")
"""The dtypes that floating tensors can be converted to."""
INDEX = "model.safetensors.index.json"
OTHER_STEP = "Export another checkpoint of the run: --step N."
CONVERTED_AT_ONCE = 1 << 20  # elements: 4 MiB in fp32, of which two copies fit a core's cache


def models_in(checkpoint: Path) -> dict[str, dict[str, TensorMetadata]]:
    """The tensors of each model in a committed checkpoint, by the model's own names.

    Raises:
        CheckpointError: the checkpoint is corrupted.
    """
    try:
        metadata = decode_metadata(checkpoint, verify_sizes(checkpoint))
    except OtherFormatError as error:
        raise CheckpointError(*error.args) from error
    except CheckpointError as error:
        raise CheckpointError(f"{error} {OTHER_STEP}") from error
    return from_names(metadata).models


def as_exported(stored: Mapping[str, TensorMetadata], dtype: str | None) -> dict[str, TensorMetadata]:
    """A model's tensors with the dtypes that they have in an export; None = as stored."""
    return {
        name: one._replace(dtype=dtype if dtype and DTYPES[one.dtype].is_floating_point else one.dtype)
        for name, one in stored.items()
    }


def export_weights(
    checkpoint: Path, directory: Path, *, dtype: str | None, max_shard_bytes: int, model: str = MODEL
) -> None:
    """Write the model's weights into an existing directory.

    Args:
        dtype: of floating tensors, one of FLOATS; None = as stored.
        model: the name of one of several.
        max_shard_bytes: limit for the tensors in one file; a larger tensor gets a file of its own.

    Raises:
        CheckpointError: the checkpoint is corrupted (names the file and the tensor), or a weight overflows in the
            dtype.
        OSError: the directory cannot be written to.
    """
    stored = models_in(checkpoint).get(model, {})
    exported = as_exported(stored, dtype)
    shards = _shards(exported, max_shard_bytes)
    weight_map: dict[str, str] = {}
    for number, names in enumerate(shards, start=1):
        file = "model.safetensors" if len(shards) == 1 else f"model-{number:05}-of-{len(shards):05}.safetensors"
        _write_shard(directory / file, names, checkpoint=checkpoint, stored=stored, exported=exported)
        weight_map |= dict.fromkeys(names, file)
    if len(shards) > 1:
        total = sum(_size(one) for one in exported.values())
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        write_new(directory / INDEX, json.dumps(index, indent=2).encode() + b"\n")


@contextmanager
def fresh_directory(path: Path) -> Iterator[Path]:
    """Make a directory to write into, which gets its final name only if the block succeeds.

    Raises:
        CheckpointError: the path exists and is not an empty directory, or the file system reported an error.
    """
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        what = "is not empty" if path.is_dir() else "is a file"
        raise CheckpointError(f"{path} {what}. Export into a new directory: --out PATH.")
    partial = unfinished(path)
    try:
        partial.mkdir(parents=True)
        yield partial
        sync_directory(partial)
        partial.rename(path)  # replaces an empty directory of this name
        sync_directory(path.parent)
    except OSError as error:
        where = error.filename or partial
        raise CheckpointError(
            f"cannot export to {path}: {where}: {error.strerror}. Choose another directory: --out PATH."
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)  # exists only if it was not renamed


def _shards(tensors: Mapping[str, TensorMetadata], max_bytes: int) -> list[list[str]]:
    """The names of each shard, in the model's order; cut where the next tensor would exceed the limit."""
    shards: list[list[str]] = [[]]
    filled = 0
    for name, one in tensors.items():
        if shards[-1] and filled + _size(one) > max_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += _size(one)
    return shards


def _write_shard(
    file: Path,
    names: Sequence[str],
    *,
    checkpoint: Path,
    stored: Mapping[str, TensorMetadata],
    exported: Mapping[str, TensorMetadata],
) -> None:
    # Largest elements first, as safetensors' own writer does, so that every tensor is aligned to its element size.
    names = sorted(names, key=lambda name: -DTYPES[exported[name].dtype].itemsize)
    with file.open("xb") as opened:
        opened.write(_header({name: exported[name] for name in names}))
        for name in names:
            for piece in _pieces(name, _read(checkpoint, stored[name]), DTYPES[exported[name].dtype]):
                opened.write(view_bytes(piece))
        opened.flush()
        os.fsync(opened.fileno())


def _header(tensors: Mapping[str, TensorMetadata]) -> bytes:
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}  # required by transformers
    end = 0
    for name, one in tensors.items():
        start, end = end, end + _size(one)
        entries[name] = {
            "dtype": SAFETENSORS_TYPES[one.dtype],
            "shape": list(one.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _read(checkpoint: Path, one: TensorMetadata) -> Tensor:
    try:
        return read_tensor(checkpoint, one)
    except CheckpointError as error:
        raise CheckpointError(f"{error} {OTHER_STEP}") from error


def _pieces(name: str, tensor: Tensor, dtype: torch.dtype) -> Iterator[Tensor]:
    """The tensor in its new dtype, a piece at a time.

    Raises:
        CheckpointError: a finite value becomes infinite.
    """
    if tensor.dtype == dtype:
        yield tensor
        return
    for piece in torch.split(tensor.reshape(-1), CONVERTED_AT_ONCE):
        converted = piece.to(dtype)
        overflown = converted.isinf() & piece.isfinite()
        if overflown.any():
            largest = piece[overflown].abs().max().item()
            limit = f"the largest {dtype_name(dtype)} is {torch.finfo(dtype).max:g}"
            raise CheckpointError(f"{name} holds {largest:g}, but {limit}. Export another dtype: --dtype bfloat16.")
        yield converted


def _size(one: TensorMetadata) -> int:
    return math.prod(one.shape) * DTYPES[one.dtype].itemsize
