"""The committed checkpoints of a run: which exist, which is the newest, which are intact.

They are ordered by commit, not by step: a run that went back to step_20 and then committed step_30 continues from
step_30, even if a step_40 from before it went back still exists.
"""

import logging
import os
import secrets
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import final

from runner import durable
from runner.config.run_dir import COMMITTED
from runner.errors import CheckpointError
from runner.storage.decode import OtherFormatError, decode_manifest
from runner.storage.files import UnreadableError
from runner.storage.format import MANIFEST, Manifest, encode_manifest
from runner.storage.integrity import verify_everything, verify_sizes

logger = logging.getLogger(__name__)

NO_OLDER = "No older checkpoint is intact: start a new run."
UNREADABLE = "No older checkpoint is intact. Once it can be read again, runner resume continues from it."
Found = dict[Path, Manifest | CheckpointError]


@final
class History:
    """The committed checkpoints in one directory. It reads each manifest once, however often it is asked.

    What it has read is valid as long as a directory keeps its name and its inode: no manifest changes while a run is
    open. With 2,000 checkpoints, reading every manifest took 0.15 s of CPU, looking at the names takes 0.006 s.
    """

    def __init__(self, checkpoints: Path) -> None:
        self.checkpoints = checkpoints
        self._read: dict[tuple[str, int], tuple[Path, Manifest]] = {}

    def manifests(self) -> Found:
        """Every committed checkpoint with its manifest, or with the error of reading it; newest first.

        A checkpoint whose manifest cannot be read comes first, since it may be the newest.

        Raises:
            CheckpointError: the directory cannot be read.
        """
        unreadable: Found = {}
        read = {}
        for name, inode in _entries(self.checkpoints):
            if not COMMITTED.fullmatch(name):
                continue
            known = self._read.get((name, inode))
            if known is None:
                path = self.checkpoints / name
                try:
                    known = path, decode_manifest(path)
                except CheckpointError as error:
                    unreadable[path] = error
                    continue
            read[name, inode] = known
        self._read = read
        return dict(sorted(unreadable.items())) | dict(sorted(read.values(), key=lambda one: -one[1].serial))

    def newest(self) -> Path | None:
        """The newest committed checkpoint, or None if there is none.

        A save may be under way in another thread, which renames and deletes here.

        Raises:
            CheckpointError: it is corrupted, or which one is the newest cannot be told. Names the file, and the newest
                older checkpoint that is intact.
        """
        while True:
            names = set(_entries(self.checkpoints))
            found = self.manifests()
            if not found:
                return None
            path, manifest = next(iter(found.items()))
            try:
                _check_newest(path, found)
            except CheckpointError as error:
                if set(_entries(self.checkpoints)) == names:
                    raise with_way_out(path, error) from error
            else:
                if isinstance(manifest, Manifest):
                    return path
            # Something was renamed meanwhile, perhaps this checkpoint, to make room for a newer one: look again.


def manifests(checkpoints: Path) -> Found:
    """Every committed checkpoint, as `History.manifests`."""
    return History(checkpoints).manifests()


def with_way_out(unusable: Path, error: CheckpointError) -> CheckpointError:
    """The error of a checkpoint that cannot be used, and what to do: continue from the newest older one that is intact.

    Every byte of that one is verified first, which takes as long as reading it. A new run is not advised because of
    what cannot be read: it may be whole.
    """
    if isinstance(error, OtherFormatError):
        return CheckpointError(*error.args)
    unreadable = isinstance(error, UnreadableError)
    paths = list(manifests(unusable.parent))
    for path in paths[paths.index(unusable) + 1 :] if unusable in paths else paths:
        logger.info("looking for an older checkpoint: verifying %s", path.name)
        try:
            verify_everything(path)
        except CheckpointError as other:
            unreadable = unreadable or isinstance(other, UnreadableError)
            continue  # corrupted as well
        return CheckpointError(f"{error} An older checkpoint is intact; continue from it: --from {path.name}.")
    return CheckpointError(f"{error} {UNREADABLE if unreadable else NO_OLDER}")


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
        verify_sizes(path)
    except CheckpointError as error:
        raise with_way_out(path, error) from error
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
    manifest = decode_manifest(chosen)
    last = last_serial({path: one for path, one in found.items() if path != chosen})
    if last >= manifest.serial:
        durable.replace(chosen / MANIFEST, encode_manifest(replace(manifest, serial=last + 1)))
    durable.sync_directory(checkpoints)
    return chosen


def last_serial(found: Mapping[Path, Manifest | CheckpointError]) -> int:
    """The serial number of the newest commit; 0 if there is none."""
    return max((one.serial for one in found.values() if isinstance(one, Manifest)), default=0)


def _check_newest(path: Path, found: Mapping[Path, Manifest | CheckpointError]) -> None:
    serial = verify_sizes(path).serial
    same = [other.name for other, one in found.items() if isinstance(one, Manifest) and one.serial == serial]
    if len(same) > 1:
        rule = "which one is the newer cannot be told. Was one copied from elsewhere?"
        raise CheckpointError(f"{path.parent}: {' and '.join(same)} have the serial number {serial}: {rule}")


def _entries(checkpoints: Path) -> list[tuple[str, int]]:
    """Name and inode of everything in the directory; every commit and every deletion changes them."""
    try:
        with os.scandir(checkpoints) as entries:
            return [(entry.name, entry.inode()) for entry in entries]
    except FileNotFoundError:
        return []
    except OSError as error:
        rule = "Give this user permission to read it, or repair that file system."
        raise CheckpointError(f"{checkpoints} cannot be read: {error.strerror}. {rule}") from error
