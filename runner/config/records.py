"""Reading metrics.jsonl without parsing all of it: a long run has a million lines there.

Each line is one JSON object that begins with `{"step": `, in ASCII, and steps do not decrease. A line is written in one
call, so only the last one can be torn by a crash, and then it lacks its line end. Others are spoilt by a power failure,
a damaged disk or an editor.
"""

import json
import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

__all__ = ["damaged_lines", "end_of", "last_values", "records"]

BEGIN, END = b'{"step": ', b"}\n"
BLOCK = 1 << 20
TAIL = 1 << 16  # bytes: some hundred records, which name every metric that is still measured


def end_of(path: Path, step: int) -> int:
    """The number of bytes up to the end of the last record whose step is at most `step`; 0 if there is none.

    Reads backwards from the end of the file, no further than that record, and passes over what is no record.
    """
    with _mapped(path) as data:
        for start, end in _lines_backwards(data):
            record = _record(data[start:end])
            if record is not None and record["step"] <= step:
                return end
    return 0


def last_values(path: Path) -> tuple[int, dict[str, float]]:
    """The step of the last record, and the latest value of each metric in the last 64 KiB. (0, {}) without a record."""
    step, values = 0, dict[str, Any]()
    with _mapped(path) as data:
        for start, end in _lines_backwards(data):
            if len(data) - start > TAIL and values:
                break
            record = _record(data[start:end])
            if record is not None:
                step = max(step, record["step"])
                values = {**record, **values}
    numbers = {name: value for name, value in values.items() if type(value) in (int, float)}
    return step, {name: value for name, value in numbers.items() if name not in ("step", "time_s")}


def records(path: Path) -> Iterator[dict[str, Any]]:
    """Every record, in order. A line that is none is passed over: `damaged_lines` tells which are."""
    with path.open("rb") if path.exists() else BytesIO() as file:
        for line in file:
            record = _record(line)
            if record is not None:
                yield record


def damaged_lines(path: Path) -> list[tuple[int, int]]:
    """Start and end of every line that is no record, in order. A torn last line is not among them.

    It looks at every byte but parses only the last MiB and what looks wrong. Elsewhere, a line that begins and ends as
    a record does and holds nothing but ASCII passes for one.
    """
    found = []
    size, start, block = path.stat().st_size if path.exists() else 0, 0, b""
    with path.open("rb") if size else BytesIO() as file:
        while start < size:
            block = file.read(BLOCK) + file.readline()
            end = start + len(block)
            if end >= size or not _looks_whole(block):
                found += [(start + at, start + at + len(line)) for at, line in _lines(block) if _record(line) is None]
            start = end
    if found and found[-1][1] == start and not block.endswith(b"\n"):
        found.pop()
    return found


def _record(line: bytes) -> dict[str, Any] | None:
    """A line, with its line end, as a record; None if it is none."""
    if not (line.startswith(BEGIN) and line.endswith(END)):
        return None
    try:
        record: dict[str, Any] = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return record if type(record["step"]) is int else None


def _looks_whole(block: bytes) -> bool:
    """Whether every line of a block begins and ends as a record does, and all of it is ASCII without zeros."""
    bounds = block.startswith(BEGIN) + block.count(END + BEGIN) + block.endswith(END)
    return bounds == block.count(b"\n") + 1 and block.isascii() and b"\0" not in block


@contextmanager
def _mapped(path: Path) -> Iterator[bytes | mmap.mmap]:
    """The bytes of a file, of which only those that are looked at are read. Nothing, if there is no file."""
    if not path.exists() or not path.stat().st_size:
        yield b""  # which mmap refuses
        return
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        yield data


def _lines(block: bytes) -> Iterator[tuple[int, bytes]]:
    """Where each line of a block starts, and the line with its line end."""
    start = 0
    while start < len(block):
        end = block.find(b"\n", start) + 1 or len(block)
        yield start, block[start:end]
        start = end


def _lines_backwards(data: bytes | mmap.mmap) -> Iterator[tuple[int, int]]:
    """Start and end of every line, the last one first."""
    end = len(data)
    while end:
        start = data.rfind(b"\n", 0, end - 1) + 1
        yield start, end
        end = start
