"""Measurements as JSON lines in the run's own directory: what other tools read."""

import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO, final

from runner.config.run_dir import RunDir
from runner.config.run_spec import RunSpec
from runner.errors import Fault


@final
@dataclass(frozen=True, kw_only=True)
class Jsonl:
    """One JSON object a line in metrics.jsonl: step, time_s, then the values in full float precision."""

    def check(self, spec: RunSpec) -> Iterable[Fault]:
        """Goes with everything."""
        return ()

    def open(self, run_dir: Path, *, config: Mapping[str, Any], step: int) -> "JsonlLog":
        """Append after `step`; lines beyond it, and half a line that a crash left, are dropped."""
        path = RunDir(run_dir).metrics
        if path.exists():
            _drop_beyond(path, step)
        return JsonlLog(path.open("a", encoding="utf-8"))


@final
class JsonlLog:
    """An open metrics.jsonl."""

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def log(self, values: Mapping[str, float], *, step: int) -> None:
        """Write one line and hand it to the operating system, so that a killed process loses none."""
        # Dicts keep the place of a key's first mention: step and time_s lead, and later equals do not move them.
        record = {"step": step, "time_s": values["time_s"], **values}
        self._file.write(_line(record))
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


ENCODER = json.JSONEncoder(allow_nan=False)  # json.dumps makes one anew for each call with an option


def _line(record: Mapping[str, float]) -> str:
    """JSON with repr's precision. It has no word for NaN and infinity; null is what pandas and jq read as missing."""
    try:
        return ENCODER.encode(record) + "\n"
    except ValueError:
        return json.dumps({key: value if math.isfinite(value) else None for key, value in record.items()}) + "\n"


def _drop_beyond(path: Path, step: int) -> None:
    """Keep the whole lines up to `step`, by writing them beside the file and renaming: a reader sees one or the other.

    Only a last line can be torn (each is one write), and it is torn exactly if it lacks its line end.
    """
    lines = [line for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        file.writelines(line for line in lines if json.loads(line)["step"] <= step)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
