"""metrics.jsonl: the measurements of a run as JSON lines in its directory. Every run writes it; other tools read it."""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TextIO, final


def open_metrics_file(path: Path, *, step: int) -> "MetricsFile":
    """Open the file to append after `step`; later lines and a partial line from a crash are dropped."""
    if path.exists():
        _drop_beyond(path, step)
    return MetricsFile(path.open("a", encoding="utf-8"))


@final
class MetricsFile:
    """An open metrics.jsonl: one object a line, step and time_s first, values in full precision."""

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def log(self, values: Mapping[str, float], *, step: int) -> None:
        """Write one line and hand it to the operating system, so that a killed process loses none.

        Args:
            values: `time_s` must be among them.
            step: optimizer steps done.
        """
        # A dict keeps a key's first position: step and time_s come first, and setting time_s again does not move it.
        self._file.write(_line({"step": step, "time_s": values["time_s"], **values}))
        self._file.flush()

    def close(self) -> None:
        """Close metrics.jsonl; every line is flushed already."""
        self._file.close()


ENCODER = json.JSONEncoder(allow_nan=False)  # json.dumps creates a new one in each call with options


def _line(record: Mapping[str, float]) -> str:
    """JSON with repr's precision. NaN and infinity, which JSON lacks, become null: pandas and jq read it as missing."""
    try:
        return ENCODER.encode(record) + "\n"
    except ValueError:
        return json.dumps({key: value if math.isfinite(value) else None for key, value in record.items()}) + "\n"


def _drop_beyond(path: Path, step: int) -> None:
    """Keep the complete lines up to `step`, by writing another file and renaming it: readers see one or the other.

    Only the last line can be incomplete (each is one write), and then it lacks its line end.
    """
    lines = [line for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        file.writelines(line for line in lines if json.loads(line)["step"] <= step)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
