"""Writing files so that a crash or a full disk leaves the old content or the new one, and never a part of either."""

import os
import secrets
from pathlib import Path

__all__ = ["replace", "sync_directory", "write_new"]


def replace(path: Path, content: str | bytes, *, mode: int = 0o666) -> None:
    """Write a file, or replace one, in a single rename that survives a power failure. Several processes may at once.

    Args:
        path: in a directory that exists.
        content: text is encoded as UTF-8.
        mode: permissions of the file, from which the process's umask is taken.

    Raises:
        OSError: the file system reported an error. Nothing has changed, and no partial file is left.
    """
    partial = path.with_name(f"{path.name}.partial-{secrets.token_hex(4)}")
    try:
        write_new(partial, content, mode=mode)
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def write_new(path: Path, content: str | bytes, *, mode: int = 0o666) -> None:
    """Write a new file and flush it to the disk; its name is durable once the directory is synced."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    with open(descriptor, "wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
        file.flush()
        os.fsync(file.fileno())


def sync_directory(path: Path) -> None:
    """Flush to the disk which names there are in a directory."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
