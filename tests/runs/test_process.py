"""A run that a program starts has a process of its own, which ends with the program and hears of its interrupts."""

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from runner.errors import RunFailed
from runner.runs.process import launch
from tests.conftest import Started, Zygote

PROGRAM = """\
import threading
from runner import train

LONG = ["run.steps=1000000", "run.dir=run", "checkpoint.every_steps=null", "log.every_steps=5", "eval.every_steps=null"]
try:
    train("points", LONG)
except KeyboardInterrupt as stopped:
    print("interrupted:", *stopped.__notes__)
"""


@pytest.fixture
def program(project: Path, tmp_path: Path, zygote: Zygote) -> Iterator[Started]:
    """A program that trains for ever, whose run is a fork, too; killed if the test has not ended it."""
    script = tmp_path / "program.py"
    script.write_text(PROGRAM)
    started = zygote.start([], cwd=project, scratch=tmp_path, env={}, script=script, forks=True)
    yield started
    started.kill()


def wait_for(what: Callable[[], bool], *, timeout_s: float = 120) -> None:
    deadline = time.monotonic() + timeout_s
    while not what():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def state(run: Path) -> str:
    path = run / "status.json"
    return str(json.loads(path.read_text())["state"]) if path.exists() else ""


@pytest.mark.parametrize(
    ("number", "said"), [(signal.SIGINT, "interrupted: interrupted after step"), (signal.SIGKILL, "")]
)
def test_the_run_stops_with_its_program_after_a_checkpoint(
    program: Started, project: Path, number: signal.Signals, said: str
) -> None:
    run = project / "run"
    wait_for(lambda: (run / "metrics.jsonl").exists() and (run / "metrics.jsonl").stat().st_size > 0)
    program.send_signal(number)
    output = program.wait(60).stdout
    wait_for(lambda: state(run) == "preempted", timeout_s=60)
    assert output.startswith(said)
    assert f"runner resume {run}" in output or number == signal.SIGKILL
    assert len(list((run / "checkpoints").glob("step_*"))) == 1


def leave(*, at_end: Callable[[Path], None]) -> None:
    """Ends its process as a crash does."""
    os._exit(7)


def test_a_process_that_ends_without_a_word_is_a_failed_run() -> None:
    with pytest.raises(RunFailed, match="ended with exit code 7"):
        launch(leave)
