"""metrics.jsonl: the measurements of a run as JSON lines in its directory. Every run writes it; other tools read it."""

import json
import math
import os
from collections.abc import Mapping
from io import FileIO
from pathlib import Path
from typing import final

from runner.config.records import end_of
from runner.durable import write_error


def open_metrics_file(path: Path, *, step: int) -> "MetricsFile":
    """Open the file to append after `step`; later lines and a partial line from a crash are dropped, at step 0 all.

    They are cut off in place, at the end of a line: a reader finds the file with them or without them, and whole lines
    either way. A copy under another name would take a second and twice the room for a million lines, and a program that
    follows the file would be left with the old one.

    Raises:
        DiskError: the file system reported an error.
    """
    try:
        file = FileIO(path, "a")
    except OSError as error:
        raise write_error(path, error) from error
    _cut(file, end_of(path, step) if step else 0)  # what eval.at_start measured at step 0 is measured again
    return MetricsFile(path, file)


@final
class MetricsFile:
    """An open metrics.jsonl: one object a line, step and time_s first, values in full precision."""

    def __init__(self, path: Path, file: FileIO) -> None:
        self._path = path
        self._file = file

    def log(self, values: Mapping[str, float], *, step: int) -> None:
        """Hand one line to the operating system, so that a killed process loses none.

        Args:
            values: `time_s` must be among them.
            step: optimizer steps done.

        Raises:
            DiskError: the file system reported an error. The file ends with the line before.
        """
        # A dict keeps a key's first position: step and time_s come first, and setting time_s again does not move it.
        line = _line({"step": step, "time_s": values["time_s"], **values})
        written = 0
        try:
            while written < len(line):  # a disk takes what there is room for, and reports that it is full afterwards
                written += self._file.write(line[written:])
        except OSError as error:
            if written:
                os.ftruncate(self._file.fileno(), os.fstat(self._file.fileno()).st_size - written)
            raise write_error(self._path, error) from error

    def flush(self) -> None:
        """Wait for the disk: every line survives a power failure from now on.

        Raises:
            DiskError: the file system reported an error.
        """
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            raise write_error(self._path, error) from error

    def close(self) -> None:
        """Close metrics.jsonl; every line is written already."""
        self._file.close()


ENCODER = json.JSONEncoder(allow_nan=False)  # json.dumps creates a new one in each call with options


def _line(record: Mapping[str, float]) -> bytes:
    """JSON with repr's precision. NaN and infinity, which JSON lacks, become null: pandas and jq read it as missing."""
    try:
        text = ENCODER.encode(record)
    except ValueError:
        text = json.dumps({key: value if math.isfinite(value) else None for key, value in record.items()})
    return text.encode() + b"\n"


def _cut(file: FileIO, size: int) -> None:
    """Shorten the file to this size, durably."""
    if os.fstat(file.fileno()).st_size > size:
        os.ftruncate(file.fileno(), size)
        os.fsync(file.fileno())
