"""What a hook may not return is told with the hook's name, what it returned, and what it must return."""

import re
from collections.abc import Callable

import pytest

from tests.conftest import Ended

WRONG = [
    ("model", "not_a_module", 3, "user_hooks.wrong.not_a_module returned a Tensor, but must return a torch.nn.Module"),
    ("model", "no_parameters", 4, "returned a model without parameters: there is nothing to train"),
    ("model", "frozen", 4, "the model has no parameter that requires a gradient: there is nothing to train"),
    ("data", "a_tuple", 3, "returned a tuple, but must return runner.Data(train=…, eval=…)"),
    ("data", "empty", 5, "the data hook's 'train' dataset is empty. Return at least one item"),
    ("data", "without_eval", 5, "eval.every_steps is set, but user_hooks.wrong.without_eval returned no eval dataset"),
    ("loss", "metric_no_pair", 3, "metric 'accuracy' is a Tensor, but must be a pair (sum, count)"),
    (
        "loss",
        "metric_of_many",
        3,
        "metric 'accuracy' holds a tensor of shape [12], but sum and count must be one number",
    ),
    ("loss", "metric_named_loss", 3, "a metric named 'loss', which Loss.total has already. Rename it"),
    ("loss", "imports_nothing", 1, "No module named 'no_such_module_anywhere'"),
]


@pytest.mark.parametrize(("hook", "name", "code", "message"), WRONG, ids=[name for _, name, *_ in WRONG])
def test_a_wrong_hook_is_told(runner: Callable[..., Ended], hook: str, name: str, code: int, message: str) -> None:
    wrong = [f"{hook}._target_=user_hooks.wrong.{name}"] + (["~model.dropout"] if hook == "model" else [])
    failed = runner("train", "points", "run.steps=2", *wrong, code=code)
    assert message in failed.stderr
    assert failed.run_dir.read_status()["state"] == "failed"


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


def test_the_run_ends_early_when_its_metric_stops_improving_on_all_ranks(runner: Callable[..., Ended]) -> None:
    options = ["callback=[early_stop]", "callback.early_stop.patience=2", "callback.early_stop.min_delta=100.0"]
    ended = runner("train", "points", "eval.every_steps=1", *options, "strategy=ddp", "hardware.processes=2")
    # The first evaluation is the best; the second and third are no hundred better.
    assert ended.run_dir.read_status()["step"] == 3
    assert ended.run_dir.read_status()["state"] == "done"
    assert (ended.run_dir.checkpoints / "step_3").is_dir()
    assert "ended after step 3" in ended.stderr


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
