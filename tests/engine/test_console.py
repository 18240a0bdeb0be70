"""What a person sees while a run trains."""

import os
import pty
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from runner import log
from runner.engine.console import LineConsole, SilentConsole, format_speed, open_console
from runner.engine.pace import Pace, format_count
from runner.engine.progress import open_progress

SHOW = """
import sys, threading, warnings
from pathlib import Path
from runner import log
from runner.engine.console import open_console
from runner.engine.progress import open_progress

log.setup(Path(sys.argv[1]), rank=0, console=True)
console = open_console(steps=600, start=0, is_main=True)
for step in (119, 120):
    console.log(step, {"train/loss": 2.3149}, 41_234.0)
console.evaluated(120, {"eval/loss": 0.5, "eval/accuracy": 0.98})
assert threading.active_count() == 1
console.close()
print(type(console).__name__)
if sys.stderr.isatty():
    progress = open_progress(70, start=10, is_main=True)
    progress.show(40)
    progress.close()
"""


@pytest.fixture
def said(tmp_path: Path) -> Iterator[Path]:
    """A log file that the runner's log goes to."""
    log.setup(tmp_path / "rank_0.log", rank=0, console=False)
    yield tmp_path / "rank_0.log"
    log.close()


def test_a_line_has_step_loss_throughput_and_eta(capsys: pytest.CaptureFixture[str]) -> None:
    clock = iter((100.0, 118.0))
    console = LineConsole(Pace("step", total=600, start=0, clock=lambda: next(clock)))
    console.log(120, {"train/loss": 2.31, "train/lr": 1e-3}, 41_234.0)
    assert capsys.readouterr().err == "step 120/600 | loss 2.31 | 41.2k items/s | eta 0:01:12\n"


def test_the_eta_of_a_resumed_run_counts_this_attempt_only() -> None:
    clock = iter((0.0, 10.0))
    pace = Pace("step", total=600, start=500, clock=lambda: next(clock))
    assert format_speed(pace, 520, {}, 5.0) == "5.00 items/s | eta 0:00:40"


def test_a_prediction_without_a_terminal_says_how_far_it_came(capsys: pytest.CaptureFixture[str]) -> None:
    progress = open_progress(600, start=500, is_main=True)
    progress.show(520)  # a moment after it began: no line
    assert capsys.readouterr().err == ""
    progress.close()
    assert capsys.readouterr().err.startswith("items 520/600 | ")


def test_an_evaluation_says_every_metric(said: Path) -> None:
    LineConsole(Pace("step", total=600, start=0)).evaluated(120, {"eval/loss": 0.51234, "eval/accuracy": 0.98})
    assert said.read_text().endswith("| step 120/600 | eval/loss 0.5123 | eval/accuracy 0.98\n")


def test_other_ranks_show_nothing(said: Path) -> None:
    console = open_console(steps=10, start=0, is_main=False)
    assert isinstance(console, SilentConsole)
    console.log(1, {"train/loss": 1.0}, 1.0)
    console.evaluated(1, {"eval/loss": 1.0})
    console.close()
    assert said.read_text() == ""


@pytest.mark.parametrize(
    ("number", "text"),
    [
        *[(0.0, "0.00"), (7.254, "7.25"), (9.999, "10.0"), (412.3, "412"), (999.9, "1.00k"), (41_234.0, "41.2k")],
        *[(1_300_000.0, "1.30M"), (2.5e9, "2.50G"), (5e15, "5000T")],
    ],
)
def test_numbers_have_three_digits_and_a_unit(number: float, text: str) -> None:
    assert format_count(number) == text


def test_without_a_terminal_there_are_plain_lines(tmp_path: Path) -> None:
    command = [sys.executable, "-c", SHOW, str(tmp_path / "rank_0.log")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "LineConsole\n"
    assert done.stderr.splitlines()[1].startswith("step 120/600 | loss 2.315 | 41.2k items/s | eta 0:00:0")
    assert done.stderr.splitlines()[2] == "step 120/600 | eval/loss 0.5 | eval/accuracy 0.98"
    assert "\x1b" not in done.stderr


def test_on_a_terminal_there_is_a_bar_without_a_thread(tmp_path: Path) -> None:
    """A real terminal: the bar ends at the last step, the evaluation stands above it and in the log."""
    ours, theirs = pty.openpty()
    shown: list[bytes] = []
    reader = threading.Thread(target=lambda: shown.extend(read_all(ours)))
    reader.start()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    command = [sys.executable, "-c", SHOW, str(tmp_path / "rank_0.log")]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=theirs, env=environment, timeout=60, check=True)
    os.close(theirs)
    reader.join()
    os.close(ours)
    text = b"".join(shown).decode()
    assert done.stdout == b"BarConsole\n"
    text, _, predicted = text.partition("items 10/70")
    assert "items 40/70" in predicted
    assert "items/s | eta 0:00:0" in predicted
    assert predicted.endswith("\x1b[?25h"), "the cursor is shown again"
    last = text.rstrip().rpartition("step ")[2]
    assert last.startswith("120/600")
    assert "loss 2.315 | 41.2k items/s | eta 0:00:0" in last
    assert "step 120/600 | eval/loss 0.5 | eval/accuracy 0.98" in text
    assert "eval/accuracy 0.98" in (tmp_path / "rank_0.log").read_text()
    assert "\x1b[?25h" in text


def read_all(terminal: int) -> list[bytes]:
    """What a terminal was sent, until nobody holds its other end."""
    chunks = []
    while True:
        try:
            chunks.append(os.read(terminal, 4096))
        except OSError:  # EIO: how Linux says that the other end was closed
            return chunks


def test_the_bar_alone_imports_rich() -> None:
    said = "import sys, runner.engine.console as c; c.open_console(steps=1, start=0, is_main=True); "
    command = [sys.executable, "-c", said + "print('rich' in sys.modules)"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "False\n"
