"""metrics.jsonl: what other tools read."""

import json
import resource
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from runner.config.run_dir import RunDir
from runner.engine.metrics_file import open_metrics_file
from runner.errors import DiskError


def record(run: Path, *steps: int, after: int = 0, values: Mapping[str, float] | None = None) -> None:
    """One attempt: opened after a step, one record at each of some steps, closed."""
    log = open_metrics_file(RunDir(run).metrics, step=after)
    for step in steps:
        log.log({"train/loss": step / 3, "time_s": step * 0.1, **(values or {})}, step=step)
    log.close()


def lines(run: Path) -> list[dict[str, Any]]:
    """What stands in the file."""
    return [json.loads(line) for line in RunDir(run).metrics.read_text().splitlines()]


def test_a_line_has_step_and_time_first_and_every_digit(tmp_path: Path) -> None:
    record(tmp_path, 1)
    assert RunDir(tmp_path).metrics.read_text() == '{"step": 1, "time_s": 0.1, "train/loss": 0.3333333333333333}\n'


def test_a_line_is_there_once_it_is_logged(tmp_path: Path) -> None:
    log = open_metrics_file(RunDir(tmp_path).metrics, step=0)
    log.log({"time_s": 1.0}, step=1)
    assert len(lines(tmp_path)) == 1
    log.close()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_json_cannot_say_is_null(tmp_path: Path, value: float) -> None:
    record(tmp_path, 1, values={"train/grad_norm": value})
    text = RunDir(tmp_path).metrics.read_text()
    parsed = json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))
    assert parsed == {"step": 1, "time_s": 0.1, "train/loss": 1 / 3, "train/grad_norm": None}


def test_resuming_drops_what_lies_beyond_the_step(tmp_path: Path) -> None:
    record(tmp_path, 1, 2, 3, 4)
    record(tmp_path, 3, after=2, values={"again": 1.0})
    assert [(line["step"], "again" in line) for line in lines(tmp_path)] == [(1, False), (2, False), (3, True)]


def test_starting_again_from_nothing_drops_everything(tmp_path: Path) -> None:
    record(tmp_path, 1, 2)
    record(tmp_path, 1, after=0)
    assert [line["step"] for line in lines(tmp_path)] == [1]


def test_a_line_torn_by_a_crash_is_dropped(tmp_path: Path) -> None:
    record(tmp_path, 1, 2)
    path = RunDir(tmp_path).metrics
    path.write_bytes(path.read_bytes()[:-9])
    record(tmp_path, 2, after=2)
    assert [line["step"] for line in lines(tmp_path)] == [1, 2]


def test_the_rewrite_leaves_no_other_file(tmp_path: Path) -> None:
    record(tmp_path, 1, 2)
    record(tmp_path, 2, after=1)
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_resume_that_drops_nothing_leaves_the_file_as_it_is(tmp_path: Path) -> None:
    record(tmp_path, 1, 2)
    before = RunDir(tmp_path).metrics.stat()
    open_metrics_file(RunDir(tmp_path).metrics, step=2).close()
    after = RunDir(tmp_path).metrics.stat()
    assert (after.st_ino, after.st_size, after.st_mtime_ns) == (before.st_ino, before.st_size, before.st_mtime_ns)


def test_a_program_that_follows_the_file_sees_what_the_next_attempt_writes(tmp_path: Path) -> None:
    record(tmp_path, 1, 2, 3)
    with RunDir(tmp_path).metrics.open() as followed:
        assert len(followed.readlines()) == 3
        record(tmp_path, 3, after=2, values={"again": 1.0})
        followed.seek(0)
        assert "again" in followed.readlines()[-1]


def test_a_line_that_a_disk_does_not_take_leaves_no_part_of_it(tmp_path: Path) -> None:
    """RLIMIT_FSIZE stands for the disk: it takes the part of a line for which there is room, then no more."""
    path = RunDir(tmp_path).metrics
    record(tmp_path, 1)
    before, size = path.read_bytes(), path.stat().st_size
    log = open_metrics_file(path, step=1)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 20, limits[1]))
    try:
        with pytest.raises(DiskError, match=r"cannot write .*metrics\.jsonl: File too large\. Once that is mended"):
            log.log({"time_s": 1.0}, step=2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert path.read_bytes() == before
    log.log({"time_s": 1.0}, step=2)
    log.close()
    assert [line["step"] for line in lines(tmp_path)] == [1, 2]


def test_an_error_of_the_disk_is_told_when_the_file_is_flushed(tmp_path: Path) -> None:
    """/dev/null stands for a disk: what it holds cannot be flushed."""
    path = RunDir(tmp_path).metrics
    path.symlink_to("/dev/null")
    log = open_metrics_file(path, step=0)
    log.log({"time_s": 1.0}, step=1)
    with pytest.raises(DiskError, match=r"cannot write .*metrics\.jsonl: Invalid argument\. Once that is mended"):
        log.flush()
    log.close()


def test_a_file_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    RunDir(tmp_path).metrics.mkdir()
    with pytest.raises(DiskError, match=r"cannot write .*metrics\.jsonl: Is a directory"):
        open_metrics_file(RunDir(tmp_path).metrics, step=0)
