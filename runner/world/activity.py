"""What each rank does right now, in memory that it shares with its launcher.

A rank that hangs cannot say so itself, and a rank that waits for it looks the same from outside. So every rank notes
the phase that it enters in one write to shared memory (0.3 us), and the launcher reads it.
"""

import mmap
import os
import secrets
import struct
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum
from typing import final

__all__ = ["UNREAD", "Activity", "ActivityTable", "Phase", "Standing"]

START = struct.Struct("=q")  # the header of the table: the number of the start
SLOT = struct.Struct("=qqq")  # of one rank: step, phase, how many phases it has entered
SLOT_BYTES = 64  # a cache line: ranks do not slow each other down
REPORT = struct.Struct("=q")  # the size of a report, which follows; 0 = there is none
REPORT_BYTES = 64 << 10
"""Room for the report of each rank, behind the slots. Only what is written to takes memory."""


class Phase(IntEnum):
    """What a rank is doing."""

    STARTING = 0
    BUILDING = 1
    DATA = 2
    STEP = 3
    EVALUATION = 4
    SAVING = 5
    CALLBACK = 6
    WAITING = 7
    FINISHED = 8

    def __str__(self) -> str:
        return WORDS[self]


WORDS = {
    Phase.STARTING: "starting",
    Phase.BUILDING: "building models and data",
    Phase.DATA: "reading data",
    Phase.STEP: "forward, backward or update",
    Phase.EVALUATION: "evaluating",
    Phase.SAVING: "saving a checkpoint",
    Phase.CALLBACK: "in a callback",
    Phase.WAITING: "waiting for the other ranks",
    Phase.FINISHED: "finished",
}


@dataclass(frozen=True, kw_only=True)
class Standing:
    """Where one rank stands."""

    step: int
    """The optimizer step that it works on; 0 = none yet."""
    phase: Phase
    changes: int
    """How many phases it has entered; as long as this stays the same, it makes no progress."""

    def __str__(self) -> str:
        return f"{self.phase} (step {self.step})" if self.step else str(self.phase)


@final
class Activity:
    """What this rank does. Main thread only."""

    def __init__(self, memory: mmap.mmap | bytearray | None = None, *, local_rank: int = 0) -> None:
        """Note it in the slot of a local rank, or, without memory, where nobody reads it."""
        self._memory = bytearray(_size(1)) if memory is None else memory
        self._offset = _offset(local_rank)
        self._report = _report_offset(self._memory, local_rank)
        self._changes = 0
        self._phase = Phase.STARTING
        self._step = 0
        self.start: int = START.unpack_from(self._memory, 0)[0]
        """Tells this start of the ranks from others, in failure reports; 0 = no launcher started them."""

    @classmethod
    def open(cls, path: str, *, local_rank: int) -> "Activity":
        """Share the table at this path, which `ActivityTable.path` gives."""
        descriptor = os.open(path, os.O_RDWR)
        try:
            return cls(mmap.mmap(descriptor, 0), local_rank=local_rank)
        finally:
            os.close(descriptor)

    def enter(self, phase: Phase, step: int | None = None) -> None:
        """Note the phase that begins now, perhaps of another step."""
        if step is not None:
            self._step = step
        self._phase = phase
        self._changes += 1
        SLOT.pack_into(self._memory, self._offset, self._step, phase, self._changes)

    def leave_report(self, report: bytes) -> None:
        """Tell the launcher how this rank failed, where the run's directory does not take it.

        Args:
            report: at most `max_report_bytes`.
        """
        REPORT.pack_into(self._memory, self._report, len(report))
        start = self._report + REPORT.size
        self._memory[start : start + len(report)] = report

    @property
    def max_report_bytes(self) -> int:
        """Room for `leave_report`."""
        return REPORT_BYTES - REPORT.size

    @contextmanager
    def during(self, phase: Phase) -> Iterator[None]:
        """Note a phase for a block, and then the one before it."""
        before = self._phase
        self.enter(phase)
        yield
        self.enter(before)  # after an error the phase stays: it is where the rank failed


@final
class ActivityTable:
    """What all ranks of one machine do, for their launcher."""

    def __init__(self, num_ranks: int) -> None:
        if sys.platform == "linux":
            # In no file system, so that nothing is left behind and no disk can be full.
            self._file = os.fdopen(os.memfd_create("runner-activity"), "r+b")
            self.path = f"/proc/{os.getpid()}/fd/{self._file.fileno()}"
        else:
            named = tempfile.NamedTemporaryFile(prefix="runner-activity-")  # noqa: SIM115  open as long as the table
            self._file, self.path = named, named.name
        self._num_ranks = num_ranks
        os.ftruncate(self._file.fileno(), _size(num_ranks))
        self._memory = mmap.mmap(self._file.fileno(), 0)

    def begin(self) -> int:
        """Forget what ranks did, since they start anew; returns the number of this start."""
        self._memory[: _offset(self._num_ranks)] = bytes(_offset(self._num_ranks))
        for local_rank in range(self._num_ranks):
            REPORT.pack_into(self._memory, _report_offset(self._memory, local_rank), 0)
        start = secrets.randbits(62) | 1
        START.pack_into(self._memory, 0, start)
        return start

    def of(self, local_rank: int) -> Activity:
        """To be written by that rank, in this process or a fork of it."""
        return Activity(self._memory, local_rank=local_rank)

    def read(self) -> list[Standing]:
        """Where each rank stands, by local rank."""
        found = [SLOT.unpack_from(self._memory, _offset(local_rank)) for local_rank in range(self._num_ranks)]
        return [Standing(step=step, phase=Phase(phase), changes=changes) for step, phase, changes in found]

    def reports(self) -> list[bytes]:
        """What ranks have left of this start, by local rank."""
        starts = [_report_offset(self._memory, local_rank) for local_rank in range(self._num_ranks)]
        sizes = [REPORT.unpack_from(self._memory, start)[0] for start in starts]
        placed = [(start + REPORT.size, size) for start, size in zip(starts, sizes, strict=True) if size]
        return [self._memory[start : start + size] for start, size in placed]

    def close(self) -> None:
        """Give the memory back."""
        self._memory.close()
        self._file.close()


def _offset(local_rank: int) -> int:
    return SLOT_BYTES * (1 + local_rank)


def _size(num_ranks: int) -> int:
    return _offset(num_ranks) + REPORT_BYTES * num_ranks


def _report_offset(memory: mmap.mmap | bytearray, local_rank: int) -> int:
    num_ranks = (len(memory) - SLOT_BYTES) // (SLOT_BYTES + REPORT_BYTES)
    return _offset(num_ranks) + REPORT_BYTES * local_rank


UNREAD = Activity()
"""For ranks that no launcher of the runner's started, and for threads: what they do is noted where nobody reads it."""
