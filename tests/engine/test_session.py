"""One attempt: whole when the first listener meets it, closed with its outcome, restored to the last bit."""

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from runner.config.run_dir import RunDir
from tests.conftest import Ended, Started
from tests.parity.options import placed
from tests.parity.test_resume import NOISE, assert_same_run, tensors

WITNESS = '''
"""A callback and a tracker that write down, in one file a rank, in which order they are called and what they see."""

import json
from dataclasses import dataclass
from typing import final

import torch


def write(path, *what):
    with path.open("a") as file:
        file.write(json.dumps(what) + "\\n")


@final
@dataclass(frozen=True, kw_only=True)
class Witness:
    fails: str = ""
    records: bool = True

    def check(self, spec):
        return ()

    def build(self):
        return Seeing(self.fails, self.records)


@final
class Seeing:
    def __init__(self, fails, records):
        self._fails, self._records = fails, records
        self._total = torch.zeros(2, dtype=torch.float64)
        self._file = None

    def before_run(self, run):
        self._file = run.run_dir.path / f"witness_{run.world.rank}.jsonl"
        optimizers = run.trainable.optimizers
        whole = {
            "ranks": run.world.size,
            "models": sorted(run.trainable.models),
            "optimizers": sorted(optimizers),
            "rates": [group["lr"] for one in optimizers.values() for group in one.param_groups],
            "step": run.progress.step,
            "position": run.progress.position,
            "total": self._total.tolist(),
        }
        if self._records:
            run.trackers.log({"witness/total": float(self._total[0])})
        write(self._file, "before_run", whole)
        if self._fails == "before_run":
            raise RuntimeError("the witness fails at before_run")

    def after_step(self, run):
        self._total += torch.tensor([run.progress.step, 0.1])

    def after_run(self, run, outcome):
        write(self._file, "after_run", outcome.value, run.progress.step)
        if self._fails == "after_run":
            raise RuntimeError("the witness fails at after_run")

    def tensors(self, trainable):
        return {"sum.of.steps": self._total}


@final
@dataclass(frozen=True, kw_only=True)
class Notes:
    def check(self, spec):
        return ()

    def open(self, run):
        path = run.run_dir / "witness_0.jsonl"
        write(path, "open", run.step)
        return Open(path)


@final
class Open:
    def __init__(self, path):
        self._path = path

    def log(self, values, *, step):
        pass

    def close(self, outcome):
        write(self._path, "close", outcome.value)
'''
RECIPE = """\
# The recipe of the tests, watched by a callback and a tracker.
# Try it: runner train watched
defaults:
  - points
  - _self_
callback:
  witness:
    _target_: user_hooks.witness.Witness
    fails: ""
tracker:
  notes:
    _target_: user_hooks.witness.Notes
"""
DOTTED = """\
# Two averages and a witness under names that have a dot in them.
# Try it: runner train dotted
defaults:
  - points
  - _self_
callback:
  my.slow:
    _target_: runner.callback.ema.EMA
    decay: 0.9
  my.fast:
    _target_: runner.callback.ema.EMA
    decay: 0.5
  my:
    _target_: user_hooks.witness.Witness
    records: false
"""


@pytest.fixture(autouse=True)
def files(project: Path) -> None:
    (project / "user_hooks" / "witness.py").write_text(WITNESS)
    (project / "recipes" / "watched.yaml").write_text(RECIPE)
    (project / "recipes" / "dotted.yaml").write_text(DOTTED)


def seen(run_dir: Path, rank: int = 0) -> list[list[Any]]:
    return [json.loads(line) for line in (run_dir / f"witness_{rank}.jsonl").read_text().splitlines()]


# ── Built, closed ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("ranks", [1, 2])
def test_what_the_first_listener_meets_is_whole_on_every_rank(runner: Callable[..., Ended], ranks: int) -> None:
    ended = runner("train", "watched", *placed("ddp", ranks), "schedule=linear", "schedule.warmup_steps=2")
    fresh = {"models": ["model"], "optimizers": ["model"], "rates": [0.0005], "step": 0, "position": 0}
    begun = ["before_run", {"ranks": ranks, **fresh, "total": [0.0, 0.0]}]
    assert seen(ended.run_dir.path) == [["open", 0], begun, ["after_run", "done", 10], ["close", "done"]]
    for rank in range(1, ranks):
        assert seen(ended.run_dir.path, rank) == [begun, ["after_run", "done", 10]], "trackers are on rank 0 alone"
    assert ended.metrics()[0] == {"step": 0, "witness/total": 0.0}
    assert ended.run_dir.read_status()["state"] == "done"


FAILING = ["loss._target_=user_hooks.points.failing_loss"]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (FAILING, [["after_run", "failed", 2], ["close", "failed"]]),
        # One whose beginning failed is not told of the end: it has nothing to close.
        (["callback.witness.fails=before_run"], [["close", "failed"]]),
        # One that fails at the end of a run that was done makes it a run that failed.
        (["callback.witness.fails=after_run"], [["after_run", "done", 10], ["close", "failed"]]),
    ],
    ids=["the loss", "before_run", "after_run"],
)
def test_whatever_fails_the_tracker_is_closed_last_and_once_with_failed(
    runner: Callable[..., Ended], options: list[str], told: list[Any]
) -> None:
    ended = runner("train", "watched", *options, code=1)
    first, begun, *rest = seen(ended.run_dir.path)
    assert (first, begun[0], rest) == (["open", 0], "before_run", told)
    assert ended.run_dir.read_status()["state"] == "failed"


def test_a_run_that_is_asked_to_stop_closes_as_preempted_and_goes_on_from_there(
    runner: Callable[..., Ended], start: Callable[..., Started], project: Path
) -> None:
    run_dir = RunDir(project / "run")
    running = start("train", "watched", "run.steps=1000000", "eval.every_steps=null", f"run.dir={run_dir.path}")
    deadline = time.monotonic() + 60
    while not run_dir.metrics.exists() or len(run_dir.metrics.read_bytes().splitlines()) < 5:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(running.pid, signal.SIGINT)
    assert running.wait(timeout_s=60).code == 130
    step = run_dir.read_status()["step"]
    assert run_dir.read_status()["state"] == "preempted"
    assert seen(run_dir.path)[2:] == [["after_run", "preempted", step], ["close", "preempted"]]
    runner("resume", str(run_dir.path), f"run.steps={step + 2}")
    opened, begun, *rest = seen(run_dir.path)[4:]
    assert opened == ["open", step]
    # After each step its number was added, and a tenth: what a listener keeps is there before it is told to begin.
    assert begun[1]["total"] == [step * (step + 1) / 2, pytest.approx(0.1 * step)]
    assert begun[1]["step"] == step
    assert rest == [["after_run", "done", step + 2], ["close", "done"]]


# ── Restored ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("ranks", [1, 2])
def test_callbacks_whose_names_have_dots_go_on_to_the_last_bit(runner: Callable[..., Ended], ranks: int) -> None:
    place = placed("ddp", ranks)
    expected = runner("train", "dotted", *NOISE, *place)
    names = {name for name in tensors(expected, 10) if name.startswith("callback.")}
    weights = ["0.weight", "0.bias", "3.weight", "3.bias"]
    assert names == {f"callback.my%2E{kind}.{name}" for kind in ("slow", "fast") for name in weights} | {
        "callback.my.sum.of.steps"
    }
    for name in weights:
        slow, fast = (tensors(expected, 10)[f"callback.my%2E{kind}.{name}"] for kind in ("slow", "fast"))
        assert not slow.equal(fast), "each has its own"
    stopped = runner("train", "dotted", *NOISE, *place, "run.stop_at_step=7")
    resumed = runner("resume", str(stopped.run_dir.path))
    assert_same_run(resumed, expected, 10)
    assert tensors(resumed, 10)["callback.my.sum.of.steps"].tolist() == [55.0, pytest.approx(1.0)]
