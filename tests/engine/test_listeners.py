"""Listeners: each is called at the moments that it implements, in order, and never for what it does not."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from runner.engine.listeners import build_listeners
from runner.errors import HookError
from runner.protocols import Outcome
from runner.world.hook_ranks import HookRanks
from runner.world.solo import SoloWorld
from tests.conftest import Ended

RANKS = HookRanks(SoloWorld(torch.device("cpu")))
DIARY = '''
import json
from contextlib import contextmanager
from dataclasses import dataclass
from typing import final

import torch


@final
@dataclass(frozen=True, kw_only=True)
class Diary:
    raises: str = ""

    def check(self, spec):
        return ()

    def build(self):
        return Writing(self.raises)


@final
class Writing:
    """Writes every call into <run>/diary_<rank>.jsonl."""

    def __init__(self, raises):
        self._raises = raises
        self._calls = torch.zeros(1)

    def _write(self, run, *what):
        with (run.run_dir.path / f"diary_{run.world.rank}.jsonl").open("a") as file:
            file.write(json.dumps([*what]) + "\\n")
        if what[0] == self._raises:
            raise RuntimeError(f"the diary is torn at {what[0]}")

    def before_run(self, run):
        self._write(run, "before_run", run.progress.step)

    def after_run(self, run, outcome):
        self._write(run, "after_run", outcome.value)

    @contextmanager
    def around_step(self, run):
        before = run.progress.step
        yield
        self._write(run, "around_step", before, run.progress.step)

    def after_step(self, run):
        self._calls += 1
        self._write(run, "after_step", run.progress.step)

    @contextmanager
    def around_eval(self, run):
        yield
        self._write(run, "around_eval", run.progress.step)

    def after_eval(self, run, metrics):
        run.trackers.log({"diary/calls": float(self._calls)})
        self._write(run, "after_eval", sorted(metrics))

    def after_save(self, run, checkpoint):
        self._write(run, "after_save", checkpoint.name)

    def state_dict(self):
        return {"pages": 3}

    def load_state_dict(self, state_dict):
        assert state_dict == {"pages": 3}

    def tensors(self, trainable):
        return {"calls": self._calls}
'''
OPTION = """# @package callback.diary
_target_: user_hooks.diary.Diary
raises: ""
"""
KEPT = ["callback=[diary]", "run.steps=2", "eval.every_steps=2", "checkpoint.every_steps=1"]


@pytest.fixture
def diary(project: Path) -> None:
    """The callback in the user's project."""
    (project / "user_hooks" / "diary.py").write_text(DIARY)
    (project / "conf" / "callback").mkdir(parents=True)
    (project / "conf" / "callback" / "diary.yaml").write_text(OPTION)


def pages(run: Path, rank: int = 0) -> list[Any]:
    return [json.loads(line) for line in (run / f"diary_{rank}.jsonl").read_text().splitlines()]


WHOLE = [
    ["before_run", 0],
    ["around_step", 0, 1],
    ["after_step", 1],
    ["after_save", "step_1"],
    ["around_step", 1, 2],
    ["after_step", 2],
    ["around_eval", 2],
    ["after_eval", ["eval/accuracy", "eval/loss"]],
    ["after_save", "step_2"],
    ["after_run", "done"],
]


@pytest.mark.parametrize("processes", [1, 2])
def test_every_rank_is_called_at_every_moment_in_order(
    runner: Callable[..., Ended], diary: None, processes: int
) -> None:
    placed = ["strategy=ddp", "hardware.processes=2"] if processes == 2 else []
    ended = runner("train", "points", *KEPT, *placed)
    for rank in range(processes):
        assert pages(ended.run_dir.path, rank) == WHOLE
    logged = [line for line in ended.metrics() if "diary/calls" in line]
    assert logged == [{"step": 2, "diary/calls": 2.0}], "only rank 0 records"


def test_its_tensors_and_state_go_on_after_a_resume(runner: Callable[..., Ended], diary: None) -> None:
    stopped = runner("train", "points", *KEPT, "run.stop_at_step=1")
    resumed = runner("resume", str(stopped.run_dir.path))
    assert pages(resumed.run_dir.path)[4:6] == [["after_run", "done"], ["before_run", 1]]
    assert resumed.metrics()[-1] == {"step": 2, "diary/calls": 2.0}


def test_an_asynchronous_save_is_told_once_it_is_committed(runner: Callable[..., Ended], diary: None) -> None:
    ended = runner("train", "points", *KEPT, "checkpoint.asynchronous=true")
    saved = [page for page in pages(ended.run_dir.path) if page[0] == "after_save"]
    assert saved[-1] == ["after_save", "step_2"]


def test_one_that_fails_ends_the_run_and_hears_of_it_once(runner: Callable[..., Ended], diary: None) -> None:
    ended = runner("train", "points", *KEPT, "callback.diary.raises=after_step", code=1)
    assert "the diary is torn at after_step" in ended.stderr
    assert pages(ended.run_dir.path)[-1] == ["after_run", "failed"]


def test_what_fails_after_a_failure_does_not_hide_it(runner: Callable[..., Ended], diary: None) -> None:
    failing = ["loss._target_=user_hooks.points.failing_loss", "callback.diary.raises=after_run"]
    ended = runner("train", "points", *KEPT, *failing, "run.steps=5", code=1)
    failure = json.loads(next(ended.run_dir.failures.glob("*.json")).read_text())
    assert failure["message"] == "the hook divides by zero"
    assert "Writing failed after the run had failed" in ended.run_dir.rank_log(0).read_text()


def test_one_that_fails_at_the_end_fails_the_run(runner: Callable[..., Ended], diary: None) -> None:
    ended = runner("train", "points", *KEPT, "callback.diary.raises=after_run", code=1)
    assert ended.run_dir.read_status()["state"] == "failed"
    assert "the diary is torn at after_run" in ended.stderr


@dataclass(frozen=True)
class Builds:
    """A callback that builds what it is given."""

    listener: Any

    def check(self, spec: Any) -> Any:
        return ()

    def build(self) -> Any:
        return self.listener


class Misspelt:
    def after_evaluation(self, run: Any, metrics: Any) -> None: ...


class Idle:
    def helper(self) -> None: ...


@pytest.mark.parametrize(
    ("listener", "says"),
    [
        (
            Misspelt(),
            r"callback\.mine: Misspelt has a method after_evaluation, which nothing calls\. .* mean after_eval\?",
        ),
        (Idle(), r"callback\.mine: Idle listens to nothing\. Implement at least one of before_run, after_run"),
    ],
)
def test_one_that_would_never_be_called_is_refused(listener: Any, says: str) -> None:
    with pytest.raises(HookError, match=says):
        build_listeners({"mine": Builds(listener)}, RANKS)


def test_without_listeners_nothing_stands_around_a_step() -> None:
    listeners = build_listeners({}, RANKS)
    assert listeners.after_step == ()
    assert listeners.around_steps == ()
    assert listeners.evaluated(None, {}) == ""


class Ending:
    def __init__(self, heard: Any) -> None:
        self.heard = heard

    def after_run(self, run: Any, outcome: Any) -> None:
        self.heard.append(outcome)


class Around:
    def __init__(self, heard: Any, name: Any) -> None:
        self.heard, self.name = heard, name

    @contextmanager
    def around_step(self, run: Any) -> Iterator[Any]:
        self.heard.append(f"enter {self.name}")
        yield
        self.heard.append(f"leave {self.name}")


def test_one_that_never_began_hears_of_no_end() -> None:
    heard: list[Outcome] = []
    listeners = build_listeners({"one": Builds(Ending(heard))}, RANKS)
    listeners.fail(None)
    assert heard == []


def test_the_first_stands_outermost() -> None:
    heard: list[str] = []
    with build_listeners({name: Builds(Around(heard, name)) for name in "ab"}, RANKS).around_step(None):
        heard.append("step")
    assert heard == ["enter a", "enter b", "step", "leave b", "leave a"]
