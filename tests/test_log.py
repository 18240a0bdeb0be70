"""The log: one line an event, a file for each rank, the terminal for rank 0."""

import logging
import re
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from runner import log


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    """No test leaves a log open."""
    yield
    log.close()


def test_an_event_is_one_line_with_time_rank_and_level(tmp_path: Path) -> None:
    path = tmp_path / "logs" / "rank_3.log"
    log.setup(path, rank=3, console=True)
    log.logger.info("step %d | loss %.2f", 120, 2.31)
    assert re.fullmatch(
        r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} \| rank 3 \| INFO \| step 120 \| loss 2.31\n", path.read_text()
    )


@pytest.mark.parametrize(("rank", "console", "shown"), [(0, True, "hello\n"), (0, False, ""), (1, True, "")])
def test_only_rank_0_speaks_to_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], rank: int, console: bool, shown: str
) -> None:
    log.setup(tmp_path / "log", rank=rank, console=console)
    log.logger.info("hello")
    log.logger.debug("nobody")
    assert capsys.readouterr() == ("", shown)
    assert (tmp_path / "log").read_text().endswith("| hello\n")


def test_a_level_from_warning_on_is_said_on_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log.setup(tmp_path / "log", rank=0, console=True)
    log.logger.warning("disk is nearly full")
    assert capsys.readouterr().err == "warning: disk is nearly full\n"


def test_a_warning_of_python_is_one_line_of_the_log(tmp_path: Path) -> None:
    log.setup(tmp_path / "log", rank=1, console=False)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(False)
        logging.captureWarnings(True)
        warnings.warn("beware\nof this", UserWarning, stacklevel=1)
        logging.captureWarnings(False)
    (line,) = (tmp_path / "log").read_text().splitlines()
    assert re.search(r"\| rank 1 \| WARNING \| .*test_log.py:\d+: UserWarning: beware of this ", line)


def test_an_attempt_that_resumes_follows_the_one_before(tmp_path: Path) -> None:
    for attempt in ("first", "second"):
        log.setup(tmp_path / "log", rank=0, console=False)
        log.logger.info(attempt)
    assert [line.rpartition(" ")[2] for line in (tmp_path / "log").read_text().splitlines()] == ["first", "second"]


def test_a_root_logger_of_somebody_else_does_not_repeat_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    log.setup(tmp_path / "log", rank=0, console=False)
    log.logger.info("once")
    assert caplog.records == []
