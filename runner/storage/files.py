"""Opening the files of a checkpoint, which may come from a stranger: only regular files, and never through a link."""

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO, final

from runner.errors import CheckpointError

NO_LINK = "The files of a checkpoint are regular files: copy here what it stands for."


@final
class UnreadableError(CheckpointError):
    """A file that the file system does not let be read, and which may be whole.

    Raised only within this room, which turns it into a CheckpointError.
    """


def open_regular(path: Path) -> BinaryIO:
    """Open a file for reading, unbuffered. A device or a pipe is not waited for.

    Raises:
        CheckpointError: it is missing, cannot be opened, or is something other than a regular file.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise CheckpointError(f"{path} is a symbolic link. {NO_LINK}") from error
        kind = CheckpointError if error.errno in (errno.ENOENT, errno.ENOTDIR) else UnreadableError
        raise kind(f"{path} is missing or cannot be read: {error.strerror}.") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise CheckpointError(f"{path} is not a regular file. {NO_LINK}")
    return os.fdopen(descriptor, "rb", buffering=0)


def size_of(path: Path) -> int:
    """The size of a file in bytes.

    Raises:
        CheckpointError: it is missing, cannot be looked at, or is something other than a regular file.
    """
    try:
        found = path.lstat()
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing.") from None
    except OSError as error:
        raise UnreadableError(f"{path} cannot be read: {error.strerror}.") from error
    if not stat.S_ISREG(found.st_mode):
        raise CheckpointError(f"{path} is not a regular file. {NO_LINK}")
    return found.st_size


def read_small(path: Path, *, max_bytes: int) -> bytes:
    """The contents of a file that fits into memory.

    Raises:
        CheckpointError: as `open_regular`; or it is larger, or reading it failed.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > max_bytes:
            raise CheckpointError(f"{path} has {size} bytes, but must have at most {max_bytes}.")
        try:
            return read_exactly(file, size)
        except OSError as error:
            raise UnreadableError(f"{path} cannot be read: {error.strerror}.") from error


def read_exactly(file: BinaryIO, size: int) -> bytes:
    """So many bytes from here on, or fewer if the file ends before."""
    pieces = []
    while size and (piece := file.read(size)):
        pieces.append(piece)
        size -= len(piece)
    return b"".join(pieces)
