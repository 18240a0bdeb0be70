"""The files in a checkpoint's directory, and how they are written. Needs no torch. `decode.py` reads them.

    step_40/
        rank_0.safetensors …   tensors, one file for each rank that had any to write
                               (checkpoint=full: state.safetensors with all of them)
        rank_0.frozen.safetensors …   frozen parameters, if there are any; possibly a hard link to the file of an
                               earlier checkpoint, which is the same to a reader
        metadata.json          for each tensor: dtype, shape, and where its chunks are
        state.json             values, progress and metrics
        manifest.json          step, position, world size, and the size and hash of every other file; written last

Hashes are xxh3-128 in hexadecimal. That of a JSON file covers its bytes; that of a payload file covers its safetensors
header followed by the 16-byte digests of its tensors in file order, so that no byte is hashed twice.

The manifest has two lines. The second one holds the hash of the first, with its newline, and nothing else:

    {"format": 3, "step": 40, "position": 1280, …, "files": {…},
    "xxh3_128": "0123456789abcdef0123456789abcdef"}

so that a person can compare the two by hand: `head -n 1 manifest.json | xxh128sum`. Hashes find accidents. They prove
nothing about who wrote a file: whoever may write into the directory can write matching hashes as well.

A reader looks only at files that the manifest lists; any others in the directory are ignored. metadata.json and
manifest.json are strict JSON, with null for a metric that is not finite; state.json may hold NaN and Infinity.
"""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import xxhash

from runner.errors import CheckpointError

FORMAT = 3
MANIFEST = "manifest.json"
METADATA = "metadata.json"
STATE = "state.json"
MAX_JSON_BYTES = 1 << 30
"""What a JSON file may take at most, so that reading one never claims more memory than a machine has."""

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
ITEM_BYTES: Mapping[str, int] = {
    name: 1 if kind == "BOOL" else int(kind.partition("_")[0].strip("BCFIU")) // 8
    for name, kind in SAFETENSORS_TYPES.items()
}
"""The size of one element, by torch's name of the dtype."""


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
    """The manifest as JSON, with the hash of itself in its last line."""
    metrics = {name: value if math.isfinite(value) else None for name, value in manifest.metrics.items()}
    fields = _encode({"format": FORMAT, **asdict(manifest), "metrics": metrics})
    first_line = fields.removesuffix(b"}\n") + b",\n"
    return first_line + digest_line(first_line)


def digest_line(first_line: bytes) -> bytes:
    """The last line of a manifest with this first line."""
    return b'"xxh3_128": "%s"}\n' % hash_of(first_line).encode()


def encode_metadata(tensors: Mapping[str, TensorMetadata]) -> bytes:
    """The metadata of all tensors as JSON."""
    metadata = {
        name: {"dtype": one.dtype, "shape": one.shape, "chunks": [chunk._asdict() for chunk in one.chunks]}
        for name, one in tensors.items()
    }
    return _encode({"format": FORMAT, "tensors": metadata})


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


def _unserializable(fields: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for group, entries in fields.items():
        for name, value in entries.items():
            try:
                json.dumps(value)
            except (TypeError, ValueError):
                yield group, name


def _encode(fields: Mapping[str, Any]) -> bytes:
    data = json.dumps(fields).encode() + b"\n"
    if len(data) > MAX_JSON_BYTES:
        rule = "Keep large values among the tensors of the state."
        raise CheckpointError(f"a checkpoint takes at most {MAX_JSON_BYTES} bytes of JSON, not {len(data)}. {rule}")
    return data
