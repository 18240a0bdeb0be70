"""The files in a checkpoint's directory. Needs no torch.

    step_40/
        rank_0.safetensors …   tensors, one file for each rank that had any to write
                               (checkpoint=full: state.safetensors with all of them)
        metadata.json          for each tensor: dtype, shape, and where its chunks are
        state.json             values, progress and metrics
        manifest.json          step, position, world size, and the size and hash of every other file; written last

Hashes are xxh3-128 in hexadecimal. That of a JSON file covers its bytes; that of a payload file covers its safetensors
header followed by the 16-byte digests of its tensors in file order, so that no byte is hashed twice.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import xxhash

from runner.errors import CheckpointError

FORMAT = 2
MANIFEST = "manifest.json"
METADATA = "metadata.json"
STATE = "state.json"

# torch's name of a dtype to safetensors': those that safetensors.safe_open returns as torch tensors.
SAFETENSORS_TYPES: Mapping[str, str] = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e4m3fnuz": "F8_E4M3FNUZ",
    "float8_e5m2": "F8_E5M2",
    "float8_e5m2fnuz": "F8_E5M2FNUZ",
    "complex64": "C64",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint64": "U64",
    "uint32": "U32",
    "uint16": "U16",
    "uint8": "U8",
    "bool": "BOOL",
}


class Chunk(NamedTuple):
    """A box of one tensor in a payload file."""

    offset: tuple[int, ...]
    """Where the box starts in the whole tensor."""
    shape: tuple[int, ...]
    file: str
    key: str
    """Its name in the safetensors file."""
    start: int
    """The byte of the file at which it starts."""
    bytes: int
    xxh3_128: str


class TensorMetadata(NamedTuple):
    """One tensor of the checkpoint, without its values."""

    dtype: str
    """torch's name, without the module: bfloat16."""
    shape: tuple[int, ...]
    chunks: tuple[Chunk, ...]


@dataclass(frozen=True, kw_only=True)
class File:
    """The size and hash of one file of the checkpoint."""

    bytes: int
    xxh3_128: str


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What makes a directory a committed checkpoint."""

    step: int
    position: int
    world_size: int
    serial: int
    """Grows by one with each commit of a run. Orders checkpoints, since a run may go back to an older step."""
    metrics: Mapping[str, float]
    files: Mapping[str, File]


def hash_of(data: bytes) -> str:
    """The xxh3-128 hash in hexadecimal."""
    return xxhash.xxh3_128(data).hexdigest()


def encode_manifest(manifest: Manifest) -> bytes:
    """The manifest as JSON."""
    return _encode({"format": FORMAT, **asdict(manifest)})


def decode_manifest(path: Path) -> Manifest:
    """Read the manifest of the checkpoint in a directory.

    Raises:
        CheckpointError: it is missing, or is not a manifest.
    """
    file = path / MANIFEST
    fields = _decode(file)
    try:
        files = {
            name: File(bytes=entry["bytes"], xxh3_128=entry["xxh3_128"]) for name, entry in fields["files"].items()
        }
        names = ("step", "position", "world_size", "serial", "metrics")
        return Manifest(files=files, **{name: fields[name] for name in names})
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{file} is corrupted: it is not a manifest ({error!r}).") from error


def check_sizes(path: Path, manifest: Manifest, remedy: str = "") -> None:
    """Compare the sizes of the files in a directory with the manifest.

    Args:
        remedy: ends the message.

    Raises:
        CheckpointError: a file is missing or has another size; names the first.
    """
    for name, file in manifest.files.items():
        try:
            size = (path / name).stat().st_size
        except FileNotFoundError:
            raise CheckpointError(f"{path / name} is missing. {remedy}".rstrip()) from None
        if size != file.bytes:
            raise CheckpointError(f"{path / name} has {size} bytes instead of {file.bytes}. {remedy}".rstrip())


def encode_metadata(tensors: Mapping[str, TensorMetadata]) -> bytes:
    """The metadata of all tensors as JSON."""
    metadata = {
        name: {"dtype": one.dtype, "shape": one.shape, "chunks": [chunk._asdict() for chunk in one.chunks]}
        for name, one in tensors.items()
    }
    return _encode({"format": FORMAT, "tensors": metadata})


def decode_metadata(path: Path, file: File) -> dict[str, TensorMetadata]:
    """Read the metadata of the tensors of the checkpoint in a directory.

    Args:
        file: the manifest's entry for it.

    Raises:
        CheckpointError: it is missing or corrupted.
    """
    fields = _decode(path / METADATA, file)
    return {name: _tensor_metadata(entry) for name, entry in fields["tensors"].items()}


def encode_state(fields: Mapping[str, Any]) -> bytes:
    """Values, progress and metrics as JSON.

    Raises:
        CheckpointError: JSON cannot represent a value; names it.
    """
    try:
        return _encode({"format": FORMAT, **fields})
    except (TypeError, ValueError) as error:
        culprits = ", ".join(f"{group}[{name!r}]" for group, name in _unserializable(fields))
        rule = "Values must be what JSON can represent; keep tensors among the tensors of the state."
        raise CheckpointError(f"{culprits} cannot be saved: {error}. {rule}") from error


def decode_state(path: Path, file: File) -> dict[str, Any]:
    """Read values, progress and metrics of the checkpoint in a directory.

    Raises:
        CheckpointError: it is missing or corrupted.
    """
    return _decode(path / STATE, file)


def _unserializable(fields: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for group, entries in fields.items():
        for name, value in entries.items():
            try:
                json.dumps(value)
            except (TypeError, ValueError):
                yield group, name


def _tensor_metadata(entry: Mapping[str, Any]) -> TensorMetadata:
    chunks = (
        Chunk(**{**chunk, "offset": tuple(chunk["offset"]), "shape": tuple(chunk["shape"])})
        for chunk in entry["chunks"]
    )
    return TensorMetadata(dtype=entry["dtype"], shape=tuple(entry["shape"]), chunks=tuple(chunks))


def _encode(fields: Mapping[str, Any]) -> bytes:
    return json.dumps(fields).encode() + b"\n"


def _decode(file: Path, expected: File | None = None) -> dict[str, Any]:
    try:
        data = file.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{file} is missing or cannot be read: {error.strerror}.") from error
    if expected is not None and hash_of(data) != expected.xxh3_128:
        raise CheckpointError(f"{file} is corrupted: it does not match its hash in {MANIFEST}.")
    try:
        fields = json.loads(data)
        version = fields["format"]
    except (ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"{file} is corrupted: it is not JSON with a format version ({error}).") from error
    if version != FORMAT:
        raise CheckpointError(f"{file} has format {version}; this version of runner reads format {FORMAT}.")
    return dict(fields)
