"""Checkpoints as someone else might have made them: files that were changed, with hashes that match nevertheless.

The hashes are computed here from the description of the format alone.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import xxhash


def sealed(fields: Mapping[str, Any] | str) -> bytes:
    """A manifest with these fields, or with this JSON text, and the hash of itself."""
    text = fields if isinstance(fields, str) else json.dumps(fields)
    first = text.rstrip().removesuffix("}").encode(errors="surrogatepass") + b",\n"
    return first + b'"xxh3_128": "%s"}\n' % xxhash.xxh3_128_hexdigest(first).encode()


def manifest_of(checkpoint: Path) -> dict[str, Any]:
    """The fields of a manifest, without its hash."""
    fields: dict[str, Any] = json.loads((checkpoint / "manifest.json").read_text())
    del fields["xxh3_128"]
    return fields


def change_manifest(checkpoint: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the fields of a manifest and seal it."""
    fields = manifest_of(checkpoint)
    change(fields)
    (checkpoint / "manifest.json").write_bytes(sealed(fields))


def plant(checkpoint: Path, name: str, data: bytes) -> None:
    """Put a file into a checkpoint, and its size and hash into the manifest."""
    (checkpoint / name).write_bytes(data)
    entry = {"bytes": len(data), "xxh3_128": xxhash.xxh3_128_hexdigest(data)}
    change_manifest(checkpoint, lambda fields: fields["files"].update({name: entry}))


def plant_payload(checkpoint: Path, name: str, data: bytes, *, header: int) -> None:
    """Put a payload file with a header of so many bytes into a checkpoint; the digests are those in the metadata."""
    (checkpoint / name).write_bytes(data)
    metadata = json.loads((checkpoint / "metadata.json").read_text())
    chunks = [chunk for one in metadata["tensors"].values() for chunk in one["chunks"] if chunk["file"] == name]
    digests = [bytes.fromhex(one["xxh3_128"]) for one in sorted(chunks, key=lambda one: (one["start"], one["bytes"]))]
    entry = {"bytes": len(data), "xxh3_128": xxhash.xxh3_128_hexdigest(data[:header] + b"".join(digests))}
    change_manifest(checkpoint, lambda fields: fields["files"].update({name: entry}))


def change_metadata(checkpoint: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the tensors in the metadata and seal all that says something about it."""
    fields = json.loads((checkpoint / "metadata.json").read_text())
    change(fields["tensors"])
    plant(checkpoint, "metadata.json", json.dumps(fields).encode())
