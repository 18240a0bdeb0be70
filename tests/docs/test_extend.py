"""The options that docs/extend.md shows, in a user's project, do what the page says."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Ended
from tests.docs.test_commands import CHECKOUT, FILE


@pytest.fixture(autouse=True)
def files_of_the_page(project: Path) -> None:
    for name, content in FILE.findall((CHECKOUT / "docs" / "extend.md").read_text()):
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_text(content)


def table(ended: Any) -> Any:
    with (ended.run_dir.path / "table.csv").open() as file:
        return [(int(step), name, float(value)) for step, name, value in csv.reader(file) if name != "time_s"]


def test_a_tracker_has_what_the_others_have_after_a_run_went_back(runner: Callable[..., Ended]) -> None:
    whole = runner("train", "points", "tracker=[table]", "run.steps=8")
    stopped = runner("train", "points", "tracker=[table]", "run.steps=8", "run.stop_at_step=6")
    resumed = runner("resume", str(stopped.run_dir.path), "--from", "step_4")
    expected = [(line["step"], *pair) for line in whole.metrics() for pair in line.items() if pair[0] != "step"]
    assert table(resumed) == table(whole) == expected


def test_a_callback_ends_the_run_and_is_checked_with_the_recipe(runner: Callable[..., Ended]) -> None:
    target = ["train", "points", "callback=[target]", "callback.target.at_most=100"]
    assert runner(*target).run_dir.read_status()["step"] == 5  # the first evaluation
    ended = runner(*target, "eval.every_steps=null", code=2)
    assert "callback=target looks at evaluations" in ended.stderr


@pytest.mark.parametrize("placed", [[], ["strategy=ddp", "hardware.processes=2"]])
def test_a_metric_is_merged_before_it_is_computed(runner: Callable[..., Ended], placed: Any) -> None:
    """13 test images a micro-batch: on two processes the last round has an empty slot on one of them."""
    metric = ["metric=[worst]", "loss._target_=user_hooks.by_digit.compute_loss", "eval.micro_items=13"]
    few = ["run.steps=30", "schedule.warmup_steps=2", "hardware=cpu"]
    last = runner("train", "digits", *metric, *few, *placed).metrics()[-1]
    digits = [last[f"eval/digit_{digit}"] for digit in range(10)]
    assert last["eval/worst"] == min(digits)
    assert min(digits) < max(digits)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_an_optimizer_resumes_and_goes_with_other_strategies(runner: Callable[..., Ended], strategy: str) -> None:
    common = ["points", "optimizer=signs", "run.steps=8"]
    alone = runner("train", *common)
    pair = runner("train", *common, "run.stop_at_step=4", f"strategy={strategy}", "hardware.processes=2")
    resumed = runner("resume", str(pair.run_dir.path), "strategy=single", "hardware.processes=1")
    for one, two in zip(alone.metrics(), resumed.metrics(), strict=True):
        assert two == pytest.approx(one, rel=1e-5)


def test_a_schedule_spans_the_run_and_names_a_wrong_value(runner: Callable[..., Ended]) -> None:
    ended = runner("train", "points", "schedule=late", "schedule.decay=0.5", "run.steps=8", "optimizer.lr=0.1")
    rates = [line["train/lr"] for line in ended.metrics() if "train/lr" in line]
    assert rates == pytest.approx([0.1, 0.1, 0.1, 0.1, 0.1, 0.075, 0.05, 0.025])
    assert "decay=2.0 must be" in runner("train", "points", "schedule=late", "schedule.decay=2", code=2).stderr
