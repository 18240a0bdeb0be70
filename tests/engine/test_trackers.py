"""Trackers as the engine holds them: metrics.jsonl always, outcomes told truthfully, errors contained."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from runner.config.run_dir import RunDir
from runner.engine.metrics_file import open_metrics_file
from runner.engine.trackers import NoTrackers, OpenTrackers
from runner.errors import HookError
from runner.protocols import Outcome, Table
from tests.conftest import Ended, Started

WITNESS = '''
from dataclasses import dataclass
from typing import final

from runner.errors import RunnerError


@final
@dataclass(frozen=True, kw_only=True)
class Witness:
    """Appends what it is told to <run>/witness.txt."""

    fails: str = ""

    def check(self, spec):
        return ()

    def open(self, run):
        if self.fails == "open":
            raise RunnerError("the witness cannot see")
        opened = Watching(run.run_dir / "witness.txt", self.fails)
        opened.write(f"open {run.name} {run.run_id} after {run.step} of {run.config['run']['steps']}")
        return opened


@final
class Watching:
    def __init__(self, path, fails):
        self._path, self._fails = path, fails

    def write(self, line):
        with self._path.open("a") as file:
            file.write(line + "\\n")

    def log(self, values, *, step):
        if self._fails == "log":
            raise ConnectionError(f"the line is dead at step {step}")
        self.write(f"log {step}")

    def close(self, outcome):
        self.write(f"close {outcome.value}")
        if self._fails == "close":
            raise ConnectionError("nobody answers")
'''


@pytest.fixture(autouse=True)
def witness(project: Path) -> None:
    """The tracker, twice, in the user's project."""
    (project / "user_hooks" / "witness.py").write_text(WITNESS)
    (project / "conf" / "tracker").mkdir(parents=True)
    for name in ("witness", "second"):
        option = f"# @package tracker.{name}\n_target_: user_hooks.witness.Witness\nfails: ''\n"
        (project / "conf" / "tracker" / f"{name}.yaml").write_text(option)


def said(run_dir: RunDir) -> list[str]:
    return (run_dir.path / "witness.txt").read_text().splitlines()


def the_run(project: Path) -> RunDir:
    (spec,) = project.glob("outputs/*/*/*/spec.yaml")
    return RunDir(spec.parent)


def test_metrics_are_recorded_whatever_the_trackers_are(runner: Callable[..., Ended]) -> None:
    plain = runner("train", "points", "run.steps=4", "tracker=[]")
    other = runner("train", "points", "run.steps=4", "tracker=[tensorboard]")
    assert plain.metrics() == other.metrics()
    assert [line["step"] for line in plain.metrics()] == [1, 2, 3, 4, 4]


def test_a_run_that_is_done_says_so_and_keeps_its_id_over_a_resume(runner: Callable[..., Ended]) -> None:
    stopped = runner("train", "points", "tracker=[witness]", "run.steps=3", "run.stop_at_step=1", "eval.at_end=false")
    resumed = runner("resume", str(stopped.run_dir.path))
    run_id = (resumed.run_dir.path / "run_id").read_text().strip()
    assert len(run_id) == 16
    assert said(resumed.run_dir) == [
        f"open points {run_id} after 0 of 3",
        "log 1",
        "close done",
        f"open points {run_id} after 1 of 3",
        "log 2",
        "log 3",
        "close done",
    ]


PLACED = pytest.mark.parametrize(
    "placed", [[], ["strategy=ddp", "hardware.processes=2"]], ids=["one-process", "two-processes"]
)


@PLACED
def test_a_run_that_fails_says_so(runner: Callable[..., Ended], placed: Any) -> None:
    """Rank 0 fails: one that only loses its peers may be killed before it can tell."""
    failing = "loss._target_=user_hooks.points.failing_loss"
    ended = runner("train", "points", "tracker=[witness]", failing, *placed, code=1)
    assert said(ended.run_dir)[-1] == "close failed"
    assert ended.run_dir.read_status()["state"] == "failed"


@PLACED
def test_a_run_that_is_preempted_says_so(project: Path, start: Callable[..., Started], placed: Any) -> None:
    endless = ["run.steps=100000000", "log.every_steps=1000", "eval.every_steps=null"]
    started = start("train", "points", "tracker=[witness]", *endless, *placed)
    deadline = time.monotonic() + 60
    while not list(project.glob("outputs/*/*/*/witness.txt")) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(started.pid, signal.SIGTERM)
    assert started.wait(60).code == 130
    run_dir = the_run(project)
    assert said(run_dir)[-1] == "close preempted"
    assert run_dir.read_status()["state"] == "preempted"


def test_a_tracker_that_fails_is_reported_once_and_ends_nothing(runner: Callable[..., Ended]) -> None:
    trackers = ["tracker=[witness,second]", "tracker.witness.fails=log"]
    ended = runner("train", "points", *trackers, "run.steps=3", "eval.at_end=false")
    log = ended.run_dir.rank_log(0).read_text()
    assert log.count("tracker=witness failed; training continues") == 1
    assert log.count("ConnectionError: the line is dead at step 1") == 1
    assert "tracker=witness failed 3 times in total" in log
    assert [line for line in said(ended.run_dir) if "log" in line] == ["log 1", "log 2", "log 3"], "the other has all"
    assert said(ended.run_dir)[-2:] == ["close done", "close done"]
    assert [line["step"] for line in ended.metrics()] == [1, 2, 3]


def test_a_tracker_that_fails_to_close_leaves_the_run_done(runner: Callable[..., Ended]) -> None:
    ended = runner("train", "points", "tracker=[witness,second]", "tracker.witness.fails=close", "run.steps=2")
    assert "ConnectionError: nobody answers" in ended.run_dir.rank_log(0).read_text()
    assert said(ended.run_dir)[-2:] == ["close done", "close done"]


def test_a_tracker_that_cannot_be_opened_is_an_error_and_closes_those_that_were(
    runner: Callable[..., Ended], project: Path
) -> None:
    ended = runner("train", "points", "tracker=[second,witness]", "tracker.witness.fails=open", code=1)
    assert "the witness cannot see" in ended.stderr
    assert said(the_run(project))[1:] == ["close failed"]


class Plain:
    """A tracker of numbers only."""

    def log(self, values: Any, *, step: Any) -> None: ...

    def close(self, outcome: Any) -> None: ...


class Library:
    """A tracker with a handle and tables."""

    handle = "the library's own"

    def __init__(self) -> None:
        self.tables: list[Any] = []

    def log(self, values: Any, *, step: Any) -> None: ...

    def log_tables(self, tables: Any, *, step: Any) -> None:
        self.tables.append((step, tables))

    def close(self, outcome: Any) -> None: ...


def opened(tmp_path: Path, **trackers: Any) -> Any:
    metrics = open_metrics_file(tmp_path / "metrics.jsonl", step=0)
    return OpenTrackers(metrics, trackers, now=lambda: (7, 0.5))


def test_tables_go_to_those_that_take_them_at_the_current_step(tmp_path: Path) -> None:
    library = Library()
    trackers = opened(tmp_path, plain=Plain(), library=library)
    table = Table(columns=["a"], rows=[[1]])
    trackers.log_tables({"t": table})
    trackers.close(Outcome.DONE)
    assert library.tables == [(7, {"t": table})]


def test_what_no_tracker_takes_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    trackers = opened(tmp_path, plain=Plain())
    for _ in range(2):
        trackers.log_text({"note": "hello"})
        trackers.log_images({"drawing": None})
        trackers.log_artifact(tmp_path, name="weights", kind="model")
    trackers.close(Outcome.DONE)
    assert caplog.messages == [
        "text is logged (note), but no tracker of this run supports it",
        "an image is logged (drawing), but no tracker of this run supports it",
        "an artifact is logged (weights), but no tracker of this run supports it",
    ]


def test_the_librarys_own_object_is_had_by_name(tmp_path: Path) -> None:
    trackers = opened(tmp_path, plain=Plain(), library=Library())
    assert trackers.handle("library") == "the library's own"
    with pytest.raises(HookError, match=r"tracker=plain does not expose an object of its library\. Use the methods"):
        trackers.handle("plain")
    with pytest.raises(HookError, match=r"the run has no tracker 'other'; it has: plain, library\. Add it: tracker="):
        trackers.handle("other")
    trackers.close(Outcome.DONE)
    assert NoTrackers().handle("other") is None, "on the other ranks there is none"
