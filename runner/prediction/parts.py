"""A prediction under way: its parts, each a file that is complete or not there, in a directory beside its file."""

import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import final

from runner import durable
from runner.prediction.formats import Columns, format_of

__all__ = ["Parts", "has_parts", "parts_directory"]

PART = re.compile(r"part_(\d+)_(\d+)")
AT_LEAST_S = 1.0
SHARE = 0.02
"""A part takes this share of the time since the beginning, so that a kill loses no more, and parts stay few."""
MAX_BYTES = 64 << 20
"""Outputs that are held in memory."""


def parts_directory(out: Path) -> Path:
    """Where the parts of a file are until it is complete."""
    return out.with_name(f"{out.name}.partial")


def has_parts(directory: Path) -> bool:
    """Whether an earlier attempt has left complete parts there."""
    return any(PART.fullmatch(path.stem) for path in directory.glob("part_*"))


@final
class Parts:
    """The items of a dataset from the first on, in files of consecutive items. For rank 0 only."""

    def __init__(self, out: Path, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._out = out
        self._directory = parts_directory(out)
        self._format = format_of(out)
        self._clock = clock
        self._began = self._committed = clock()
        self._held: list[Columns] = []
        self._bytes = 0
        self.files: list[Path] = []
        self.items = 0
        """Items in parts and in memory."""
        self._items_committed = 0
        self._find()

    def add(self, outputs: Columns, items: int) -> None:
        """Take the next items; from time to time they become a part."""
        self._held.append(outputs)
        self._bytes += sum(_bytes(values) for values in outputs.values())
        self.items += items
        now = self._clock()
        if self._bytes >= MAX_BYTES or now - self._committed >= max(AT_LEAST_S, SHARE * (now - self._began)):
            self.commit()

    def commit(self) -> None:
        """Make a part of what is held in memory."""
        if self._held:
            path = self._directory / f"part_{self._items_committed}_{self.items}{self._out.suffix}"
            partial = self._directory / f"unfinished{self._out.suffix}"
            partial.unlink(missing_ok=True)
            self._format.write(partial, self._held)
            partial.rename(path)
            durable.sync_directory(self._directory)
            self.files.append(path)
        self._held, self._bytes, self._items_committed = [], 0, self.items
        self._committed = self._clock()

    def finish(self) -> None:
        """Join the parts to the final file.

        Raises:
            FileExistsError: meanwhile there is one.
        """
        self.commit()
        joined = self._directory / f"joined{self._out.suffix}"
        joined.unlink(missing_ok=True)
        self._format.join(self.files, joined)
        os.link(joined, self._out)  # unlike a rename, this never replaces a file
        durable.sync_directory(self._out.parent)

    def _find(self) -> None:
        """The parts of an earlier attempt, from the first item on."""
        found = {}
        for path in self._directory.glob(f"part_*{self._out.suffix}"):
            if match := PART.fullmatch(path.stem):
                found[int(match[1])] = (int(match[2]), path)
        while self.items in found:
            self.items, path = found[self.items]
            self.files.append(path)
        self._items_committed = self.items


def _bytes(values: object) -> int:
    from torch import Tensor

    return values.nbytes if isinstance(values, Tensor) else 64 * len(values)  # type: ignore[arg-type]
