"""Secrets on their way from the launcher to ranks that are new interpreters, which no file of a run may hold.

Forked ranks have them in memory. For a new interpreter the launcher writes them into a file of its own, in a directory
that only this account can enter, and the rank deletes it as soon as it has read it. The directory is in memory where
the system offers one (/dev/shm); it goes when the launcher ends, and only a SIGKILL before the rank has read its file
leaves that behind.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import final

from runner import durable
from runner.config.secret import Secret

__all__ = ["Handover", "hand_over", "receive"]

IN_MEMORY = Path("/dev/shm")


@final
@dataclass(frozen=True, kw_only=True)
class Handover:
    """A place where each rank of this machine finds the secrets, once for each of its starts."""

    directory: Path | None
    """None = there are no secrets, or the ranks have them already."""
    secrets: Mapping[str, Secret]
    processes: int

    @property
    def words(self) -> tuple[str, ...]:
        """What the command line of a rank needs besides."""
        return () if self.directory is None else (str(self.directory),)

    def write(self) -> None:
        """Leave a file for each rank."""
        if self.directory is None:
            return
        content = json.dumps({key: [one.value, one.source] for key, one in self.secrets.items()})
        for local_rank in range(self.processes):
            path = self.directory / str(local_rank)
            path.unlink(missing_ok=True)  # of a rank that died before it read
            durable.write_new(path, content, mode=0o600)


@contextmanager
def hand_over(secrets: Mapping[str, Secret], *, processes: int) -> Iterator[Handover]:
    """A handover to the ranks that are started in the block; nothing is left of it afterwards."""
    if not secrets:
        yield Handover(directory=None, secrets={}, processes=0)
        return
    writable = IN_MEMORY.is_dir() and os.access(IN_MEMORY, os.W_OK)
    directory = Path(tempfile.mkdtemp(prefix="runner-", dir=IN_MEMORY if writable else None))  # mode 0700
    try:
        yield Handover(directory=directory, secrets=secrets, processes=processes)
    finally:
        shutil.rmtree(directory)


def receive(directory: Path) -> dict[str, Secret]:
    """What the launcher has left for this rank; the file is gone afterwards."""
    path = directory / os.environ["LOCAL_RANK"]
    content = path.read_text()
    path.unlink()
    return {key: Secret(value=value, source=source) for key, (value, source) in json.loads(content).items()}
