"""The committed checkpoints of a run: which exist, which is the newest, which are intact.

They are ordered by commit, not by step: a run that went back to step_20 and then committed step_30 continues from
step_30, even if a step_40 from before it went back still exists.
"""

import re
import secrets
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from runner import durable
from runner.errors import CheckpointError
from runner.storage.format import MANIFEST, Manifest, check_sizes, decode_manifest, encode_manifest

COMMITTED = re.compile(r"step_\d+")


def manifests(checkpoints: Path) -> dict[Path, Manifest | CheckpointError]:
    """Every committed checkpoint with its manifest, or with the error of reading it; newest first.

    A checkpoint whose manifest cannot be read comes first, since it may be the newest.
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
    """Check that every file of a committed checkpoint exists and has the size in the manifest. Reads no payload.

    Raises:
        CheckpointError: a file is missing or has another size; names it.
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
                raise CheckpointError(f"{error} {suggest_older(path)}") from error
        else:
            return path
        # Something was renamed meanwhile, perhaps this checkpoint, to make room for a newer one: look again.


def suggest_older(corrupted: Path) -> str:
    """The way out when this checkpoint is corrupted: the newest older one that is intact."""
    paths = list(manifests(corrupted.parent))
    for path in paths[paths.index(corrupted) + 1 :] if corrupted in paths else paths:
        try:
            verify(path)
        except CheckpointError:
            continue  # corrupted as well
        return f"An older checkpoint is intact; continue from it: --from {path.name}."
    return "No older checkpoint is intact: start a new run."


def find(checkpoints: Path, name: str) -> Path:
    """The committed checkpoint with this name, such as step_40.

    Raises:
        CheckpointError: there is none, or it is corrupted.
    """
    path = checkpoints / name
    if not (COMMITTED.fullmatch(name) and path.is_dir()):
        names = ", ".join(path.name for path in manifests(checkpoints)) or "none"
        raise CheckpointError(
            f"{checkpoints} has no checkpoint {name!r}. Committed checkpoints, newest first: {names}."
        )
    try:
        verify(path)
    except CheckpointError as error:
        raise CheckpointError(f"{error} {suggest_older(path)}") from error
    return path


def choose(checkpoints: Path, name: str) -> Path:
    """Make an older checkpoint the newest, so that every later start of the run continues from it.

    Only for a run that is not running. Checkpoints whose manifests cannot be read are renamed, since they might be
    newer.

    Raises:
        CheckpointError: there is no checkpoint with this name, or it is corrupted.
    """
    chosen = find(checkpoints, name)
    found = manifests(checkpoints)
    for path in (path for path, one in found.items() if isinstance(one, CheckpointError)):
        path.rename(path.with_name(f"{path.name}.unreadable-{secrets.token_hex(4)}"))
    manifest = verify(chosen)
    if last_serial(found) > manifest.serial:
        durable.replace(chosen / MANIFEST, encode_manifest(replace(manifest, serial=last_serial(found) + 1)))
    durable.sync_directory(checkpoints)
    return chosen


def last_serial(found: Mapping[Path, Manifest | CheckpointError]) -> int:
    """The serial number of the newest commit; 0 if there is none."""
    return max((one.serial for one in found.values() if isinstance(one, Manifest)), default=0)


def _names(checkpoints: Path) -> set[str]:
    """All names in the directory; every commit and every deletion changes them."""
    return {path.name for path in checkpoints.glob("*")}


def _age(found: Manifest | CheckpointError) -> float:
    return float("-inf") if isinstance(found, CheckpointError) else -found.serial
