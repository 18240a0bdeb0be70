"""metrics.jsonl is read from its end, and what cannot be a record there is found."""

import json
import random
import tracemalloc
from pathlib import Path

import pytest

from runner.config.records import damaged_lines, end_of, last_values


def line(step: int, **values: float) -> bytes:
    return json.dumps({"step": step, "time_s": 0.1 * step, **values}).encode() + b"\n"


LAST = line(9, loss=0.123456789012345)


def write(path: Path, *lines: bytes) -> Path:
    file = path / "metrics.jsonl"
    file.write_bytes(b"".join(lines))
    return file


@pytest.mark.parametrize(("step", "kept"), [(0, 0), (1, 1), (2, 3), (3, 4), (9, 4)])
def test_the_end_of_a_step_is_that_of_its_last_record(tmp_path: Path, step: int, kept: int) -> None:
    lines = [line(1), line(2), line(2, loss=0.5), line(3)]
    assert end_of(write(tmp_path, *lines), step) == len(b"".join(lines[:kept]))


def test_a_file_that_is_not_there_or_empty_ends_at_0(tmp_path: Path) -> None:
    assert end_of(tmp_path / "metrics.jsonl", 5) == 0
    assert end_of(write(tmp_path), 5) == 0
    assert last_values(write(tmp_path)) == (0, {})
    assert damaged_lines(write(tmp_path)) == []


def test_a_torn_last_line_is_beyond_every_step(tmp_path: Path) -> None:
    file = write(tmp_path, line(1), line(2)[:-1])
    assert end_of(file, 2) == len(line(1))
    assert damaged_lines(file) == []


@pytest.mark.parametrize(
    "garbage",
    [
        b"\0" * 40,
        b"",
        b"{",
        b'{"step": 2',
        b'{"step": null}',
        b'{"step": "2"}',
        b'{"step": 2, "x": \xff}',
        b"[" * 10_000,
    ],
    ids=["zeros", "empty", "brace", "torn", "null", "text", "not_utf8", "deep"],
)
def test_a_damaged_line_is_found_and_passed_over(tmp_path: Path, garbage: bytes) -> None:
    file = write(tmp_path, line(1), garbage + b"\n", line(3))
    start = len(line(1))
    assert damaged_lines(file) == [(start, start + len(garbage) + 1)]
    assert end_of(file, 2) == start
    assert last_values(file)[0] == 3


def test_a_damaged_line_is_found_far_from_the_end(tmp_path: Path) -> None:
    lines = [line(step, loss=1 / step) for step in range(1, 40_000)]  # 2 MB
    start = len(b"".join(lines[:100]))
    lines[100] = b"\0" * len(lines[100])
    assert damaged_lines(write(tmp_path, *lines)) == [(start, start + len(lines[100] + lines[101]))]


def test_the_last_values_are_the_latest_of_each_metric(tmp_path: Path) -> None:
    lines = [line(1, a=1.0, b=1.0), line(2, a=2.0), b'{"step": 3, "time_s": 1, "b": null, "note": "x"}\n']
    assert last_values(write(tmp_path, *lines)) == (3, {"a": 2.0})


def test_whatever_bytes_there_are_the_kept_part_ends_in_a_record(tmp_path: Path) -> None:
    """Against an oracle that parses every line."""
    chance = random.Random(0)
    for _ in range(300):
        lines = [line(step, loss=chance.random()) for step in range(1, chance.randint(2, 30))]
        content = bytearray(b"".join(lines))
        for _ in range(chance.randint(0, 4)):
            content[chance.randrange(len(content))] = chance.choice(
                [0, 10, 13, 34, 92, 125, 200, chance.randrange(256)]
            )
        file = write(tmp_path, bytes(content))
        step = chance.randint(0, 30)
        assert end_of(file, step) == _parsed_end(bytes(content), step)


def _parsed_end(content: bytes, step: int) -> int:
    kept = end = 0
    for one in content.split(b"\n")[:-1]:
        end += len(one) + 1
        try:
            record = json.loads(one)
        except ValueError:
            continue
        begins = one.startswith(b'{"step": ') and one.endswith(b"}")
        if begins and type(record["step"]) is int and record["step"] <= step:
            kept = end
    return kept


def test_many_lines_cost_no_memory(tmp_path: Path) -> None:
    with (tmp_path / "metrics.jsonl").open("wb") as file:
        for copy in range(1_000):
            file.write(
                b"".join(line(step, loss=0.123456789012345) for step in range(10)) if copy else line(0) * 400_000
            )
    tracemalloc.start()
    assert end_of(tmp_path / "metrics.jsonl", 8) == (tmp_path / "metrics.jsonl").stat().st_size - len(LAST)
    assert damaged_lines(tmp_path / "metrics.jsonl") == []
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 5 << 20  # the file has 12 MB, a list of its lines more than 30
