"""The commit protocol: a checkpoint is committed or it is not there.

    step_40.partial-<id>     being written, or being deleted: of no worth, removed when the run is opened again
    step_40.replaced-<id>    the older commit of a step that was reached again, for the moment between two renames
    step_40                  committed: whole and on the disk

Only rank 0 calls these functions.
"""

import os
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path

from runner.storage.format import MANIFEST, File, Manifest, check_sizes, encode_manifest, hash_of


def begin(checkpoints: Path, step: int) -> Path:
    """A fresh directory to write a checkpoint into."""
    path = checkpoints / f"step_{step}.partial-{secrets.token_hex(4)}"
    path.mkdir()
    return path


def commit(partial: Path, manifest: Manifest, texts: Mapping[str, bytes]) -> Path:
    """Make what was written into a directory a committed checkpoint.

    Args:
        partial: from `begin`; the payload files are in it, on the disk.
        manifest: names the payload files; the others are added here.
        texts: the JSON files, by name.

    Raises:
        CheckpointError: a payload file cannot be seen from here.
    """
    check_sizes(partial, manifest, "Every node must see the same directory: put run.dir on a file system they share.")
    for name, text in texts.items():
        write_durably(partial / name, text)
    added = {name: File(bytes=len(text), xxh3_128=hash_of(text)) for name, text in texts.items()}
    whole = Manifest(**{**vars(manifest), "files": {**manifest.files, **added}})
    write_durably(partial / MANIFEST, encode_manifest(whole))
    sync_directory(partial)
    return _rename_durably(partial, partial.parent / f"step_{manifest.step}")


def recover(checkpoints: Path) -> None:
    """Remove what a killed run left behind; bring back a commit that was about to be replaced."""
    for replaced in checkpoints.glob("step_*.replaced-*"):
        committed = checkpoints / replaced.name.partition(".")[0]
        if committed.exists():
            drop(replaced)
        else:
            replaced.rename(committed)
    for partial in checkpoints.glob("step_*.partial-*"):
        shutil.rmtree(partial)
    sync_directory(checkpoints)


def discard(partial: Path) -> None:
    """Give back the space of a checkpoint that could not be written. What resists is removed at the next `recover`."""
    shutil.rmtree(partial, ignore_errors=True)


def drop(path: Path) -> None:
    """Delete a checkpoint. Half deleted it does not look committed."""
    doomed = path.with_name(f"{path.name.partition('.')[0]}.partial-{secrets.token_hex(4)}")
    path.rename(doomed)
    shutil.rmtree(doomed)


def _rename_durably(partial: Path, committed: Path) -> Path:
    """One rename commits. A commit of the same step (a run that went back came here again) makes room for it."""
    replaced = committed.with_name(f"{committed.name}.replaced-{secrets.token_hex(4)}")
    if committed.exists():
        committed.rename(replaced)
    partial.rename(committed)
    sync_directory(committed.parent)
    if replaced.exists():
        drop(replaced)
    return committed


def write_durably(path: Path, text: bytes) -> None:
    """Write a new file; it is on the disk when this returns, its name once the directory is synced."""
    with path.open("xb") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def sync_directory(path: Path) -> None:
    """Names that were made or changed in it are on the disk when this returns."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
