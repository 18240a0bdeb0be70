"""Laws 5, 6 and 7 over whole runs: a run that was stopped, moved or killed ends as the one that was not."""

import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from runner.config.run_dir import RunDir
from tests.conftest import Ended, Started

NOISE = ["loss._target_=user_hooks.points.noisy_loss", "model.dropout=0.2"]  # every generator matters
PAIR = ["strategy=ddp", "hardware.processes=2"]


def tensors(ended: Any, step: Any) -> Any:
    """Everything that the checkpoint of a step holds, by name, from all of its files."""
    found: dict[str, torch.Tensor] = {}
    for path in (ended.run_dir.checkpoints / f"step_{step}").glob("*.safetensors"):
        found |= load_file(path)
    return found


def assert_same_run(ended: Any, expected: Any, step: Any) -> None:
    assert ended.metrics() == expected.metrics()
    ours, theirs = tensors(ended, step), tensors(expected, step)
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert torch.equal(ours[name].nan_to_num(), theirs[name].nan_to_num()), name


def stopped_and_resumed(runner: Callable[..., Ended], step: Any, *overrides: Any) -> Any:
    stopped = runner("train", "points", f"run.stop_at_step={step}", *overrides)
    assert stopped.run_dir.read_status()["step"] == step
    resumed = runner("resume", str(stopped.run_dir.path))
    assert resumed.run_dir.path == stopped.run_dir.path
    assert resumed.run_dir.read_status()["state"] == "done"
    return resumed


@pytest.mark.parametrize("noise", [pytest.param([], marks=pytest.mark.exhaustive), NOISE])
def test_stopping_after_any_step_changes_no_bit(runner: Callable[..., Ended], noise: Any) -> None:
    """Steps 1 to 9 of ten: in mid-epoch, at its end (5), and on either side of both."""
    expected = runner("train", "points", *noise)
    for step in range(1, 10):
        assert_same_run(stopped_and_resumed(runner, step, *noise), expected, 10)


@pytest.mark.parametrize("step", [1, 4, 5, 7])
def test_stopping_two_ranks_changes_no_bit(
    runner: Callable[..., Ended], trained: Callable[..., Ended], step: int
) -> None:
    expected = trained("train", "points", *NOISE, *PAIR)
    assert_same_run(stopped_and_resumed(runner, step, *NOISE, *PAIR), expected, 10)


@pytest.mark.parametrize(("before", "after"), [([], PAIR), (PAIR, ["strategy=single", "hardware.processes=1"])])
def test_a_run_moves_between_one_rank_and_two(
    runner: Callable[..., Ended], trained: Callable[..., Ended], before: Any, after: Any
) -> None:
    expected = trained("train", "points")
    stopped = runner("train", "points", "run.stop_at_step=3", *before)
    resumed = runner("resume", str(stopped.run_dir.path), *after)
    ours, theirs = tensors(resumed, 10), tensors(expected, 10)
    for name in (name for name in theirs if not name.startswith("rng.")):
        # fp32 sums in another order, through ten steps of AdamW.
        torch.testing.assert_close(ours[name], theirs[name], rtol=0, atol=2e-6)
    for one, other in zip(resumed.metrics(), expected.metrics(), strict=True):
        assert one == pytest.approx(other, rel=1e-5)


def test_two_deterministic_runs_of_one_spec_are_bitwise_equal(runner: Callable[..., Ended]) -> None:
    options = [*NOISE, "run.deterministic=true", "run.seed=3"]
    assert_same_run(runner("train", "points", *options), runner("train", "points", *options), 10)


def test_readers_in_other_processes_change_no_bit(runner: Callable[..., Ended], trained: Callable[..., Ended]) -> None:
    expected = trained("train", "points")
    assert_same_run(runner("train", "points", "loader.workers=2"), expected, 10)
    assert_same_run(stopped_and_resumed(runner, 7, "loader.workers=1"), expected, 10)


def test_a_resumed_run_may_be_longer_and_its_schedule_then_is_that_of_the_longer_run(
    runner: Callable[..., Ended],
) -> None:
    short = runner("train", "points", "run.steps=6", "run.stop_at_step=4", "schedule=cosine")
    longer = runner("resume", str(short.run_dir.path), "run.steps=10")
    rates = {line["step"]: line["train/lr"] for line in longer.metrics() if "train/lr" in line}
    whole = runner("train", "points", "schedule=cosine")
    expected = {line["step"]: line["train/lr"] for line in whole.metrics() if "train/lr" in line}
    assert {step: rates[step] for step in range(5, 11)} == {step: expected[step] for step in range(5, 11)}
    assert rates[4] != expected[4]


@pytest.mark.fault("20 SIGKILLs in a row at random moments", "the losses are those of a run that was never killed")
@pytest.mark.parametrize("options", [[], pytest.param(PAIR, marks=pytest.mark.exhaustive)])
def test_twenty_kills_in_a_row_lose_nothing_but_time(
    runner: Callable[..., Ended], start: Callable[..., Started], project: Path, options: Any
) -> None:
    """SIGKILL at random moments, amid steps and commits; each time the resume goes on from the last commit."""
    steps = 120
    length = [f"run.steps={steps}", "checkpoint.every_steps=3", "checkpoint.keep_last=2", "eval.every_steps=40"]
    expected = runner("train", "points", *NOISE, *length, *options)
    run_dir, moments = RunDir(project / "killed"), random.Random(0)
    argv = ["train", "points", *NOISE, *length, *options, f"run.dir={run_dir.path}"]
    for kill in range(20):
        running = start(*argv)
        _wait_for_lines(run_dir, 1 + kill * (steps // 25), amid=running)
        time.sleep(moments.uniform(0, 0.05))
        running.kill()
        assert running.wait(timeout_s=30).code == -signal.SIGKILL, "the run had ended before it was killed"
        argv = ["resume", str(run_dir.path)]
    assert_same_run(runner(*argv), expected, steps)


def _wait_for_lines(run_dir: Any, lines: Any, *, amid: Any) -> None:
    deadline = time.monotonic() + 60
    while not run_dir.metrics.exists() or len(run_dir.metrics.read_bytes().splitlines()) < lines:
        assert time.monotonic() < deadline, f"{amid.argv} wrote no {lines} lines:\n{amid.stderr.read_text()}"
        time.sleep(0.002)
