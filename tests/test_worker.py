"""A rank that fails says so in the run's directory, and the class of its error becomes the command's exit code."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from runner.config.run_dir import RunDir
from tests.conftest import Ended
from tests.parity.options import placed

HOOK = '''
import builtins
import os

import runner.errors
from user_hooks.points import CALLS, mean_loss

KINDS = {**vars(builtins), **vars(runner.errors)}


def loss(model, batch, error="ValueError", rank=0, step=3):
    """Raises that error on that rank in that step."""
    if next(CALLS) == step and int(os.environ.get("RANK", "0")) == rank:
        raise KINDS[error](f"{error} of rank {rank}")
    return mean_loss(model, batch)
'''
CODES = {
    "ValueError": 1,
    "HookError": 3,
    "ModelError": 4,
    "DataError": 5,
    "NonFiniteError": 6,
    "OutOfMemoryError": 7,
    "CheckpointError": 8,
    "LaunchError": 9,
    "RankError": 10,
    "HangError": 11,
}
"""Written down from docs/exit_codes.md."""


@pytest.fixture
def fail(project: Path, runner: Callable[..., Ended]) -> Callable[..., RunDir]:
    """Train two ranks or one, of which one fails with an error in a step; the directory of the run."""
    (project / "user_hooks" / "failing.py").write_text(HOOK)

    def run(error: str, *, code: int, rank: int = 0, step: int = 3, ranks: int = 1, options: Any = ()) -> RunDir:
        hook = ["loss._target_=user_hooks.failing.loss", f"+loss.error={error}", f"+loss.rank={rank}"]
        where = ["eval.every_steps=null", *placed("ddp", ranks), f"+loss.step={step}", *options]
        return runner("train", "points", *hook, *where, code=code).run_dir

    return run


def reports(run_dir: RunDir) -> dict[int, dict[str, Any]]:
    """The failure files, by rank."""
    found = [json.loads(path.read_text()) for path in run_dir.failures.glob("*.json")]
    return {one["rank"]: one for one in found}


@pytest.mark.parametrize(
    ("error", "code"),
    [  # tests/test_errors.py has the code of each class
        pytest.param(
            error, code, marks=() if error in ("ValueError", "HookError", "DataError") else pytest.mark.exhaustive
        )
        for error, code in CODES.items()
    ],
)
def test_the_class_of_the_error_is_the_exit_code(fail: Callable[..., RunDir], error: str, code: int) -> None:
    run_dir = fail(error, code=code)
    (report,) = reports(run_dir).values()
    assert (report["error"], report["message"]) == (error, f"{error} of rank 0")
    assert run_dir.read_status()["state"] == "failed"


@pytest.mark.parametrize("error", ["ValueError", "DataError"])
def test_a_failing_rank_of_two_reports_rank_step_class_and_traceback(fail: Callable[..., RunDir], error: str) -> None:
    run_dir = fail(error, code=CODES[error], rank=1, step=4, ranks=2)
    report = reports(run_dir)[1]
    assert report.keys() == {"rank", "time_ns", "monotonic_ns", "start", "step", "error", "message", "traceback"}
    assert (report["rank"], report["step"], report["error"]) == (1, 3, error), "three steps were done"
    assert report["message"] == f"{error} of rank 1"
    first, *_, last = report["traceback"].splitlines()
    assert first == "Traceback (most recent call last):"
    assert last.endswith(f"{error}: {error} of rank 1")
    assert 'user_hooks/failing.py", line' in report["traceback"]
    (path,) = run_dir.failures.glob("*_rank_1.json")
    assert path.name == f"{report['time_ns']}_rank_1.json"
    assert not list(run_dir.failures.glob("*.partial"))


def test_a_rank_that_fails_before_its_first_step_reports_the_step_of_the_last_attempt(
    fail: Callable[..., RunDir], runner: Callable[..., Ended]
) -> None:
    run_dir = fail("ValueError", code=1, step=7)  # the last commit is that of step 4
    assert reports(run_dir)[0]["step"] == 6
    broken = ["data._target_=user_hooks.wrong.a_tuple", "--allow", "data._target_"]
    runner("resume", str(run_dir.path), *broken, code=3)
    last = max(run_dir.failures.glob("*.json"))
    report = json.loads(last.read_text())
    assert (report["error"], report["step"]) == ("HookError", run_dir.read_status()["step"])


def test_a_run_that_ends_well_reports_nothing(runner: Callable[..., Ended]) -> None:
    assert not runner("train", "points", "run.steps=1", *placed("ddp", 2)).run_dir.failures.exists()


def test_the_failing_ranks_traceback_comes_first_with_its_step(runner: Callable[..., Ended]) -> None:
    failed = runner(
        "train",
        "points",
        "loss._target_=user_hooks.points.failing_loss",
        "+loss.rank='1'",
        "strategy=ddp",
        "hardware.processes=2",
        code=1,
    )
    before, _, _ = failed.stderr.partition("ZeroDivisionError: the hook divides by zero")
    assert "rank 1 failed at step 2" in before
    assert "Connection closed by peer" not in before
    (told,) = failed.run_dir.failures.glob("*_rank_1.json")
    assert '"step": 2' in told.read_text()


def test_a_group_of_ranks_that_lost_one_goes_on_from_its_last_commit(runner: Callable[..., Ended]) -> None:
    expected = runner("train", "points", "strategy=ddp", "hardware.processes=2")
    failing = ["loss._target_=user_hooks.points.failing_once", "launch.max_restarts=1"]
    ended = runner("train", "points", *failing, "strategy=ddp", "hardware.processes=2")
    assert "continuing after step 4 from step_4" in ended.stderr
    assert ended.run_dir.read_status()["state"] == "done"
    assert ended.metrics()[-1]["step"] == expected.metrics()[-1]["step"]


def test_the_exit_code_is_that_of_the_rank_that_failed_first(runner: Callable[..., Ended]) -> None:
    wrong = "loss._target_=user_hooks.wrong.metric_named_loss"
    failed = runner("train", "points", "run.steps=2", wrong, "strategy=ddp", "hardware.processes=2", code=3)
    assert re.search(r"^rank \d failed at step \d: HookError: the loss hook returned", failed.stderr, re.MULTILINE)
    swept = runner("train", "points", "-m", "run.steps=1,2", wrong, code=1)
    assert "job 0 failed (exit code 3)" in swept.stderr
