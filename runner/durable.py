"""Writing files so that a crash or a full disk leaves the old content or the new one, and never a part of either."""

import errno
import os
import re
import secrets
from pathlib import Path

from runner.errors import DiskError

__all__ = ["FULL", "remove_unfinished", "replace", "sync_directory", "unfinished", "write_error", "write_new"]

FULL = (errno.ENOSPC, errno.EDQUOT)
"""What a file system reports if there is no room: the disk is full, or the user's quota."""
UNFINISHED = re.compile(r".+\.partial-[0-9a-f]+")
"""The name of a file that `replace` has not renamed yet."""


def replace(path: Path, content: str | bytes, *, mode: int = 0o666, flush: bool = True) -> None:
    """Write a file, or replace one, in a single rename that survives a power failure. Several processes may at once.

    Args:
        path: in a directory that exists.
        content: text is encoded as UTF-8.
        mode: permissions of the file, from which the process's umask is taken.
        flush: wait for the disk. Without, a killed process leaves the old content or the new one as well, but a power
            failure may leave an empty file: for what is replaced again within seconds.

    Raises:
        OSError: the file system reported an error. Nothing has changed, and no partial file is left.
    """
    partial = unfinished(path)
    try:
        write_new(partial, content, mode=mode, flush=flush)
        os.replace(partial, path)
    except BaseException as error:
        partial.unlink(missing_ok=True)
        if isinstance(error, OSError):
            error.filename = str(path)  # a write to a descriptor names no file
        raise
    if flush:
        sync_directory(path.parent)


def unfinished(path: Path) -> Path:
    """A new name beside a path for what gets that name once it is whole; see `remove_unfinished`."""
    return path.with_name(f"{path.name}.partial-{secrets.token_hex(4)}")


def remove_unfinished(directory: Path) -> None:
    """Remove the files that killed processes had not renamed yet. For whoever alone may write there."""
    if directory.is_dir():
        for name in os.listdir(directory):
            if UNFINISHED.fullmatch(name) and (directory / name).is_file():
                (directory / name).unlink(missing_ok=True)


def write_new(path: Path | str, content: str | bytes, *, mode: int = 0o666, flush: bool = True) -> None:
    """Write a new file and flush it to the disk; its name is durable once the directory is synced."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    rest = memoryview(content.encode() if isinstance(content, str) else content)
    try:
        while rest:
            rest = rest[os.write(descriptor, rest) :]
        if flush:
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_error(path: Path, error: OSError) -> DiskError:
    """The error of a run that cannot write one of its own files."""
    rule = "Once that is mended, the run continues from its last checkpoint with runner resume."
    return DiskError(f"cannot write {path}: {error.strerror}. {rule}")


def sync_directory(path: Path) -> None:
    """Flush to the disk which names there are in a directory."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
