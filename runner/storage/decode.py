"""Reading the JSON files of a checkpoint, as data of a stranger: everything is checked before anything relies on it."""

import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from runner.errors import CheckpointError
from runner.storage.fields import LARGEST, mapping, metric, parse, sequence, shown, text, whole_number, whole_numbers
from runner.storage.files import read_small, size_of
from runner.storage.format import (
    FORMAT,
    ITEM_BYTES,
    MANIFEST,
    MAX_JSON_BYTES,
    METADATA,
    STATE,
    Chunk,
    File,
    Manifest,
    TensorMetadata,
    digest_line,
    hash_of,
)
from runner.storage.tiling import fills

MAX_MANIFEST_BYTES = 64 << 20  # half a million ranks
FIELDS = ("format", "step", "position", "world_size", "serial", "metrics", "files", "xxh3_128")
PLAIN = re.compile(r"(?!\.\.?$)[A-Za-z0-9._-]{1,255}")
HASH = re.compile(r"[0-9a-f]{32}")


class OtherFormatError(CheckpointError):
    """Raised only within this room, which turns it into a CheckpointError."""


def decode_manifest(path: Path) -> Manifest:
    """Read the manifest of the committed checkpoint in a directory.

    Raises:
        CheckpointError: it is missing or corrupted, has another format, or belongs to another directory.
    """
    file = path / MANIFEST
    data = read_small(file, max_bytes=MAX_MANIFEST_BYTES)
    first, newline, last = data.partition(b"\n")
    with _named(file):
        if last != digest_line(first + newline):
            _refuse_older_format(file, data)
            raise ValueError("it does not match the hash of itself, which is its last line")
        fields = parse(data, finite=True)
        _check_format(file, fields)
        manifest = _manifest(mapping(fields, "it", keys=FIELDS))
        if path.name != f"step_{manifest.step}":
            raise ValueError(f"its step is {manifest.step}, but its directory is {path.name}")
    return manifest


def check_sizes(path: Path, manifest: Manifest, remedy: str = "") -> None:
    """Compare the sizes of the files in a directory with the manifest.

    Args:
        remedy: ends the message.

    Raises:
        CheckpointError: a file is missing, is no regular file, or has another size; names the first.
    """
    for name, file in manifest.files.items():
        try:
            size = size_of(path / name)
        except CheckpointError as error:
            raise CheckpointError(f"{error} {remedy}".rstrip()) from error
        if size != file.bytes:
            raise CheckpointError(f"{path / name} has {size} bytes instead of {file.bytes}. {remedy}".rstrip())


def decode_metadata(path: Path, manifest: Manifest) -> dict[str, TensorMetadata]:
    """Read the metadata of the tensors of the checkpoint in a directory.

    Every tensor has a dtype that there is, and each of its elements is in exactly one chunk; the chunks fill the
    payload files that the manifest lists, each byte behind a header once.

    Raises:
        CheckpointError: it is missing, corrupted, or says anything else.
    """
    file = path / METADATA
    with _named(file):
        fields = mapping(_decode(file, manifest.files[METADATA], finite=True), "it", keys=("format", "tensors"))
        tensors = {
            text(name, "the name of a tensor"): _tensor(entry, f"tensors[{shown(name)}]")
            for name, entry in mapping(fields["tensors"], "tensors").items()
        }
        _check_files(tensors, manifest)
    return tensors


def decode_state(path: Path, file: File) -> dict[str, Any]:
    """Read the values of the checkpoint in a directory.

    Args:
        file: the manifest's entry for it.

    Raises:
        CheckpointError: it is missing or corrupted.
    """
    with _named(path / STATE):
        return mapping(_decode(path / STATE, file, finite=False).get("values"), "values")


def chunks_by_file(tensors: Mapping[str, TensorMetadata]) -> dict[str, list[Chunk]]:
    """The chunks in each payload file, in the order in which they stand there."""
    found: dict[str, list[Chunk]] = {}
    for one in tensors.values():
        for chunk in one.chunks:
            found.setdefault(chunk.file, []).append(chunk)
    for chunks in found.values():
        # An empty tensor starts where the next one does, and was written before it.
        chunks.sort(key=lambda chunk: (chunk.start, chunk.bytes))
    return found


@contextmanager
def _named(file: Path) -> Iterator[None]:
    """Say of a fault in which file it is."""
    try:
        yield
    except ValueError as error:
        raise CheckpointError(f"{file} is corrupted: {error}.") from error


def _decode(file: Path, expected: File, *, finite: bool) -> dict[str, Any]:
    data = read_small(file, max_bytes=MAX_JSON_BYTES)
    if hash_of(data) != expected.xxh3_128:
        raise ValueError(f"it does not match its hash in {MANIFEST}")
    fields = parse(data, finite=finite)
    _check_format(file, fields)
    return fields


def _check_format(file: Path, fields: Mapping[str, Any]) -> None:
    version = whole_number(fields.get("format"), "format")
    if version != FORMAT:
        rule = f"this version of runner reads format {FORMAT}. Use the version that wrote it: see provenance.json."
        raise OtherFormatError(f"{file} has format {version}; {rule}")


def _refuse_older_format(file: Path, data: bytes) -> None:
    """Say so if this is a manifest of a format before 3, when manifests did not have a hash of themselves."""
    try:
        fields = parse(data, finite=False)
    except ValueError:
        return
    if fields.get("format") in (1, 2) and "xxh3_128" not in fields:
        _check_format(file, fields)


def _manifest(fields: Mapping[str, Any]) -> Manifest:
    files = {
        _plain(name): _file(entry, f"files[{shown(name)}]") for name, entry in mapping(fields["files"], "files").items()
    }
    for name in (METADATA, STATE):
        if name not in files:
            raise ValueError(f"files lacks {name}")
    metrics = mapping(fields["metrics"], "metrics")
    return Manifest(
        **{name: whole_number(fields[name], name) for name in ("step", "position", "serial")},
        world_size=whole_number(fields["world_size"], "world_size", least=1),
        metrics={name: metric(value, f"metrics[{shown(name)}]") for name, value in metrics.items()},
        files=files,
    )


def _plain(name: str) -> str:
    """The name of a file in the checkpoint's own directory."""
    if not PLAIN.fullmatch(name) or name == MANIFEST:
        raise ValueError(f"files lists {shown(name)}, which is not the name of a payload file")
    return name


def _file(entry: object, place: str) -> File:
    fields = mapping(entry, place, keys=("bytes", "xxh3_128"))
    return File(bytes=whole_number(fields["bytes"], f"{place}.bytes"), xxh3_128=_hash(fields["xxh3_128"], place))


def _hash(value: object, place: str) -> str:
    if type(value) is not str or not HASH.fullmatch(value):
        raise ValueError(f"{place}.xxh3_128 is not a hash of 32 hexadecimal digits")
    return value


def _tensor(entry: object, place: str) -> TensorMetadata:
    fields = mapping(entry, place, keys=("dtype", "shape", "chunks"))
    dtype = text(fields["dtype"], f"{place}.dtype")
    if dtype not in ITEM_BYTES:
        raise ValueError(f"{place}.dtype is {shown(dtype)}, but must be one of {', '.join(ITEM_BYTES)}")
    shape = whole_numbers(fields["shape"], f"{place}.shape")
    whole_number(math.prod(shape) * ITEM_BYTES[dtype], f"the size of {place}")
    found = enumerate(sequence(fields["chunks"], f"{place}.chunks"))
    chunks = tuple(_chunk(one, f"{place}.chunks[{index}]", dtype, shape) for index, one in found)
    if not fills([(chunk.offset, chunk.shape) for chunk in chunks], shape):
        raise ValueError(f"the chunks of {place} overlap, or leave a gap")
    return TensorMetadata(dtype, shape, chunks)


def _chunk(entry: object, place: str, dtype: str, whole: tuple[int, ...]) -> Chunk:
    fields = mapping(entry, place, keys=Chunk._fields)
    offset = whole_numbers(fields["offset"], f"{place}.offset")
    shape = whole_numbers(fields["shape"], f"{place}.shape")
    inside = len(offset) == len(shape) == len(whole) and all(
        start + length <= size for start, length, size in zip(offset, shape, whole, strict=True)
    )
    if not inside:
        raise ValueError(f"{place} is not a box within its tensor")
    size = math.prod(shape) * ITEM_BYTES[dtype]
    return Chunk(
        offset,
        shape,
        text(fields["file"], f"{place}.file"),
        text(fields["key"], f"{place}.key"),
        whole_number(fields["start"], f"{place}.start", least=8, most=LARGEST - size),
        whole_number(fields["bytes"], f"{place}.bytes", least=size, most=size),
        _hash(fields["xxh3_128"], place),
    )


def _check_files(tensors: Mapping[str, TensorMetadata], manifest: Manifest) -> None:
    """Check that the chunks fill the payload files."""
    found = chunks_by_file(tensors)
    payloads = manifest.files.keys() - {METADATA, STATE}
    if found.keys() != payloads:
        odd = min(found.keys() ^ payloads)
        where = "it has no tensor in" if odd in payloads else f"{MANIFEST} does not list"
        raise ValueError(f"{where} {shown(odd)}")
    for name, chunks in found.items():
        ends = [chunk.start + chunk.bytes for chunk in chunks]
        if [chunk.start for chunk in chunks[1:]] != ends[:-1] or ends[-1] != manifest.files[name].bytes:
            raise ValueError(f"its tensors overlap in {name!r}, leave gaps, or end elsewhere than the file")
