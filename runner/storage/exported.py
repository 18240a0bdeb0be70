"""Exported weights as a checkpoint to read: safetensors files, as `runner export` and transformers write them."""

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NamedTuple, final

import xxhash

from runner.errors import CheckpointError
from runner.protocols import State, StoredTensor, World
from runner.protocols.state import MODEL
from runner.storage.export import INDEX
from runner.storage.files import open_regular, read_exactly
from runner.storage.format import ITEM_BYTES, SAFETENSORS_TYPES, Chunk, File, TensorMetadata
from runner.storage.memory import DTYPES
from runner.storage.names import to_names
from runner.storage.payload import MAX_HEADER_BYTES, READ_BYTES
from runner.storage.rank0 import on_rank_0

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["ExportedWeights", "open_exported"]

SINGLE = "model.safetensors"
DTYPE_OF = {kind: name for name, kind in SAFETENSORS_TYPES.items()}


class _Content(NamedTuple):
    """The tensors of an export by their names in a checkpoint, and a hash of each file's header."""

    tensors: Mapping[str, TensorMetadata]
    files: Mapping[str, File]


@final
class ExportedWeights:
    """A model's weights, without optimizer, callbacks and values."""

    def __init__(self, path: Path, content: _Content, world: World) -> None:
        self.path = path
        self._content = content
        self._world = world
        tensors = {name.removeprefix("model."): one for name, one in content.tensors.items()}
        self.stored: State[StoredTensor] = State(
            models={MODEL: {name: StoredTensor(one.shape, DTYPES[one.dtype]) for name, one in tensors.items()}}
        )

    def read(self, state: "State[Tensor]") -> None:
        """Fill the model's tensors in place. Collective.

        Raises:
            CheckpointError: tensors are missing, have another shape or kind of dtype, or have changed since.
        """
        from runner.storage.read import mismatches, read_tensors

        tensors = to_names(state)
        if wrong := list(mismatches(tensors, self._content.tensors)):
            raise CheckpointError(f"{self.path} does not hold the weights of this model: {'; '.join(wrong)}.")
        directory = self.path if self.path.is_dir() else self.path.parent
        read_tensors(self._world, directory, tensors, metadata=self._content.tensors, files=self._content.files)


def open_exported(path: Path, world: World) -> ExportedWeights:
    """Open exported weights: a directory with model.safetensors, or with shards and their index; or a file. Collective.

    Rank 0 reads every byte once, for the hashes that each rank compares while it reads its own part.

    Raises:
        CheckpointError: there are none, or a file is damaged.
    """
    return ExportedWeights(path, on_rank_0(world, lambda: _read(path), path=path), world)


def _read(path: Path) -> _Content:
    tensors: dict[str, TensorMetadata] = {}
    files: dict[str, File] = {}
    for file in _files(path):
        chunks, files[file.name] = _read_file(file)
        tensors |= chunks
    return _Content(tensors, files)


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    index = path / INDEX
    if not index.exists():
        return [path / SINGLE]
    try:
        names = set(json.loads(index.read_bytes())["weight_map"].values())
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{index} is not an index of weights: {type(error).__name__}: {error}") from error
    if odd := [name for name in names if not isinstance(name, str) or Path(name).name != name]:
        raise CheckpointError(f"{index} names {odd[0]!r}, which is not a file beside it.")
    return [path / name for name in sorted(names)]


def _read_file(path: Path) -> tuple[dict[str, TensorMetadata], File]:
    with open_regular(path) as file:
        size = read_exactly(file, 8)
        length = int.from_bytes(size, "little")
        if length > MAX_HEADER_BYTES:
            raise CheckpointError(f"{path} is no safetensors file: its header would have {length} bytes.")
        header = read_exactly(file, length)
        try:
            entries = sorted(_entries(json.loads(header), path.name, 8 + length), key=lambda one: one[1].start)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{path} is no safetensors file: {type(error).__name__}: {error}") from error
        hasher = xxhash.xxh3_128(size + header)
        tensors = {}
        for dtype, chunk in entries:
            digest = _digest(file, path, chunk)
            hasher.update(bytes.fromhex(digest))
            name = f"model.{chunk.key}"
            tensors[name] = TensorMetadata(dtype, chunk.shape, (chunk._replace(xxh3_128=digest),))
    return tensors, File(bytes=path.stat().st_size, xxh3_128=hasher.hexdigest())


def _entries(header: Mapping[str, dict[str, object]], file: str, begin: int) -> Iterator[tuple[str, Chunk]]:
    for key, entry in header.items():
        if key == "__metadata__":
            continue
        dtype = DTYPE_OF[str(entry["dtype"])]
        shape = tuple(int(n) for n in entry["shape"])  # type: ignore[attr-defined]
        start, stop = (int(n) for n in entry["data_offsets"])  # type: ignore[attr-defined]
        if stop - start != math.prod(shape) * ITEM_BYTES[dtype]:
            raise ValueError(f"tensor {key!r} has {stop - start} bytes")
        yield dtype, Chunk((0,) * len(shape), shape, file, key, begin + start, stop - start, "")


def _digest(file: BinaryIO, path: Path, chunk: Chunk) -> str:
    hasher = xxhash.xxh3_128()
    file.seek(chunk.start)
    left = chunk.bytes
    while left:
        piece = file.read(min(READ_BYTES, left))
        if not piece:
            raise CheckpointError(f"{path} is truncated: tensor {chunk.key!r} lacks {left} of {chunk.bytes} bytes.")
        hasher.update(piece)
        left -= len(piece)
    return hasher.hexdigest()
