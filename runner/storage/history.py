"""The committed checkpoints of a run: which there are, which is the newest, which are whole.

The order is that of their commits, not of their steps: a run that went back to step_20 and has committed step_30 goes
on from there, though a step_40 of its former course may still stand beside.
"""

import os
import re
import secrets
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from runner.errors import CheckpointError
from runner.storage.commit import sync_directory, write_durably
from runner.storage.format import MANIFEST, Manifest, check_sizes, decode_manifest, encode_manifest

COMMITTED = re.compile(r"step_\d+")


def manifests(checkpoints: Path) -> dict[Path, Manifest | CheckpointError]:
    """Every committed checkpoint with its manifest, or with what is wrong with that; newest first.

    One whose manifest cannot be read may be the newest, so it comes first.
    """
    found: dict[Path, Manifest | CheckpointError] = {}
    for path in checkpoints.glob("step_*"):
        if COMMITTED.fullmatch(path.name):
            try:
                found[path] = decode_manifest(path)
            except CheckpointError as error:
                found[path] = error
    return dict(sorted(found.items(), key=lambda entry: _age(entry[1])))


def verify(path: Path) -> Manifest:
    """Hold a committed checkpoint to its manifest: every file is there and has its size. Reads no payload.

    Raises:
        CheckpointError: names the file.
    """
    manifest = decode_manifest(path)
    check_sizes(path, manifest)
    return manifest


def newest(checkpoints: Path) -> Path | None:
    """The newest committed checkpoint, or None if there is none.

    A save may be under way in another thread, which renames and deletes here.

    Raises:
        CheckpointError: it is corrupted. Names the file, and the newest older checkpoint that is intact.
    """
    while True:
        names = _names(checkpoints)
        path = next(iter(manifests(checkpoints)), None)
        if path is None:
            return None
        try:
            verify(path)
        except CheckpointError as error:
            if _names(checkpoints) == names:
                raise CheckpointError(f"{error} {way_out(path)}") from error
        else:
            return path
        # Something was renamed meanwhile, perhaps this checkpoint, to make room for a newer one: look again.


def way_out(corrupted: Path) -> str:
    """What to do when this committed checkpoint is corrupted: which older one to continue from."""
    paths = list(manifests(corrupted.parent))
    for path in paths[paths.index(corrupted) + 1 :] if corrupted in paths else paths:
        try:
            verify(path)
        except CheckpointError:
            continue  # corrupted as well: not one to offer
        return f"The next older checkpoint is whole; continue from it: --from {path.name}."
    return "No older checkpoint is whole: begin a new run."


def find(checkpoints: Path, name: str) -> Path:
    """The committed checkpoint of this name: step_40.

    Raises:
        CheckpointError: there is none, or it is corrupted.
    """
    path = checkpoints / name
    if not (COMMITTED.fullmatch(name) and path.is_dir()):
        names = ", ".join(path.name for path in manifests(checkpoints)) or "none"
        raise CheckpointError(f"{checkpoints} has no checkpoint {name!r}. Those committed, newest first: {names}.")
    try:
        verify(path)
    except CheckpointError as error:
        raise CheckpointError(f"{error} {way_out(path)}") from error
    return path


def choose(checkpoints: Path, name: str) -> Path:
    """Make an older checkpoint the newest, so that the run continues from it however often it is started again.

    Call it only while the run is not running. Checkpoints whose manifests cannot be read, and which might therefore be
    newer, get another name.

    Raises:
        CheckpointError: there is none of this name, or it is corrupted.
    """
    chosen = find(checkpoints, name)
    found = manifests(checkpoints)
    for path in (path for path, one in found.items() if isinstance(one, CheckpointError)):
        path.rename(path.with_name(f"{path.name}.unreadable-{secrets.token_hex(4)}"))
    manifest = verify(chosen)
    if last_serial(found) > manifest.serial:
        rewritten = chosen / f"{MANIFEST}.partial-{secrets.token_hex(4)}"
        write_durably(rewritten, encode_manifest(replace(manifest, serial=last_serial(found) + 1)))
        os.replace(rewritten, chosen / MANIFEST)
        sync_directory(chosen)
    sync_directory(checkpoints)
    return chosen


def last_serial(found: Mapping[Path, Manifest | CheckpointError]) -> int:
    """Of the newest commit; 0 if there is none."""
    return max((one.serial for one in found.values() if isinstance(one, Manifest)), default=0)


def _names(checkpoints: Path) -> set[str]:
    """Of everything in the directory; changes with every commit and every deletion."""
    return {path.name for path in checkpoints.glob("*")}


def _age(found: Manifest | CheckpointError) -> float:
    return float("-inf") if isinstance(found, CheckpointError) else -found.serial
