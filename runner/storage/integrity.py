"""Whether a committed checkpoint is intact, and what to do if it is not."""

from functools import partial
from pathlib import Path

from runner.errors import CheckpointError
from runner.storage.decode import (
    check_sizes,
    chunks_by_file,
    decode_manifest,
    decode_metadata,
    decode_state,
)
from runner.storage.format import METADATA, STATE, Manifest
from runner.storage.names import from_names
from runner.storage.payload import open_payload, read_in_parallel, read_verified


def verify_sizes(path: Path) -> Manifest:
    """Check the manifest, and that every file exists and has the size that the manifest says. Reads no payload.

    Raises:
        CheckpointError: a file is missing or has another size; names it.
    """
    manifest = decode_manifest(path)
    check_sizes(path, manifest)
    return manifest


def verify_everything(path: Path) -> None:
    """Check every byte of a committed checkpoint. Takes as long as reading it.

    Raises:
        CheckpointError: a file is missing or corrupted, or says what this version of runner does not know; names it.
    """
    manifest = verify_sizes(path)
    metadata = decode_metadata(path, manifest)
    try:
        from_names(metadata)
    except ValueError as error:
        raise CheckpointError(f"{path / METADATA}: {error}") from error
    decode_state(path, manifest.files[STATE])
    for name, chunks in chunks_by_file(metadata).items():
        with open_payload(path / name, chunks=chunks, expected=manifest.files[name]) as file:
            read_in_parallel(chunks, partial(read_verified, file, path / name))
