"""The commit protocol: a checkpoint is committed or it is not there.

    step_40.partial-<id>     being written or deleted: worthless, removed when the run is opened again
    step_40.replaced-<id>    the older checkpoint of a step that was reached again, between two renames
    step_40                  committed: complete and on the disk

Only rank 0 calls these functions.
"""

import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path

from runner.durable import sync_directory, write_new
from runner.storage.decode import check_sizes
from runner.storage.format import MANIFEST, File, Manifest, encode_manifest, hash_of


def begin(checkpoints: Path, step: int) -> Path:
    """Make a fresh directory to write a checkpoint into."""
    path = checkpoints / f"step_{step}.partial-{secrets.token_hex(4)}"
    path.mkdir()
    return path


def commit(partial: Path, manifest: Manifest, texts: Mapping[str, bytes]) -> Path:
    """Turn a directory that was written to into a committed checkpoint.

    Args:
        partial: from `begin`, with the payload files in it, flushed to the disk.
        manifest: lists the payload files; the others are added here.
        texts: the JSON files, by name.

    Raises:
        CheckpointError: a payload file is not visible on this node.
    """
    check_sizes(partial, manifest, "Every node must see the same directory: put run.dir on a file system they share.")
    for name, text in texts.items():
        write_new(partial / name, text)
    added = {name: File(bytes=len(text), xxh3_128=hash_of(text)) for name, text in texts.items()}
    whole = Manifest(**{**vars(manifest), "files": {**manifest.files, **added}})
    write_new(partial / MANIFEST, encode_manifest(whole))
    sync_directory(partial)
    return _rename_durably(partial, partial.parent / f"step_{manifest.step}")


def recover(checkpoints: Path) -> None:
    """Remove what a killed run left behind; restore a checkpoint that was about to be replaced."""
    for replaced in checkpoints.glob("step_*.replaced-*"):
        committed = checkpoints / replaced.name.partition(".")[0]
        if committed.exists():
            drop(replaced)
        else:
            replaced.rename(committed)
    for partial in checkpoints.glob("step_*.partial-*"):
        _delete(partial)
    sync_directory(checkpoints)


def discard(partial: Path) -> None:
    """Free the space of a checkpoint that could not be written. What cannot be deleted now, `recover` deletes."""
    shutil.rmtree(partial, ignore_errors=True)


def drop(path: Path) -> None:
    """Delete a checkpoint. It is renamed first, so that a half-deleted one does not look committed."""
    doomed = path.with_name(f"{path.name.partition('.')[0]}.partial-{secrets.token_hex(4)}")
    path.rename(doomed)
    _delete(doomed)


def _delete(path: Path) -> None:
    """Delete a directory; of a link to one, only the link."""
    if path.is_symlink() or not path.is_dir():
        path.unlink()
    else:
        shutil.rmtree(path)


def _rename_durably(partial: Path, committed: Path) -> Path:
    """Commit with one rename. An older checkpoint of the same step, from before the run went back, is replaced."""
    replaced = committed.with_name(f"{committed.name}.replaced-{secrets.token_hex(4)}")
    if committed.exists():
        committed.rename(replaced)
    partial.rename(committed)
    sync_directory(committed.parent)
    if replaced.exists():
        drop(replaced)
    return committed
