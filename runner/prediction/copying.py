"""A new file that is flushed to the disk once its block has ended."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def new_file(path: Path) -> Iterator[BinaryIO]:
    """Open a file that does not exist for writing."""
    with path.open("xb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
