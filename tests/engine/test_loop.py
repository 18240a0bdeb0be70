"""Between steps: what is recorded, evaluated and saved, and at which steps; and the learning rates beside the loss."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Ended
from tests.parity.options import placed

TRAIN = ["train", "points", "optimizer=adamw", "optimizer.lr=0.02"]
WARMUP = ["schedule=constant", "schedule.warmup_steps=4", "run.steps=6", "eval.every_steps=null"]
FACTORS = [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]  # of the six steps: n / 4 up to the fourth
APART = ["strategy=single", "strategy=ddp", "strategy=fsdp", "strategy=deepspeed_zero1", "strategy=deepspeed_zero3"]


def rates(ended: Ended) -> list[dict[str, float]]:
    """What each line says of learning rates; every line must be of a step."""
    return [
        {key: value for key, value in line.items() if key.startswith("train/lr")}
        for line in ended.metrics()
        if "train/loss" in line
    ]


# ── Learning rates ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("strategy", [option.removeprefix("strategy=") for option in APART])
def test_each_groups_rate_is_recorded_as_the_warm_up_moves_it(runner: Callable[..., Ended], strategy: str) -> None:
    groups = "optimizer.groups=[{match: '0.bias', lr_factor: 0.1}, {match: '^3', lr_factor: 3.0, weight_decay: 0.0}]"
    ranks = 1 if strategy == "single" else 2
    ended = runner(*TRAIN, *WARMUP, groups, *placed(strategy, ranks), timeout_s=120)
    assert rates(ended) == [
        pytest.approx(
            {"train/lr": 0.02 * factor, "train/lr/group_1": 0.002 * factor, "train/lr/group_2": 0.06 * factor},
            rel=1e-12,
        )
        for factor in FACTORS
    ]


def test_a_run_of_one_group_has_one_rate(runner: Callable[..., Ended]) -> None:
    ended = runner(*TRAIN, *WARMUP)
    assert rates(ended) == [pytest.approx({"train/lr": 0.02 * factor}, rel=1e-12) for factor in FACTORS]


def test_a_group_whose_rate_is_that_of_the_first_is_not_listed_and_keeps_its_number(
    runner: Callable[..., Ended],
) -> None:
    groups = "optimizer.groups=[{match: '0.bias', weight_decay: 0.5}, {match: '^3', lr_factor: 0.5}]"
    ended = runner(*TRAIN, *WARMUP, groups)
    assert [{*line} for line in rates(ended)] == [{"train/lr", "train/lr/group_2"}] * 6
    assert [line["train/lr/group_2"] for line in rates(ended)] == pytest.approx([0.01 * f for f in FACTORS], rel=1e-12)


def test_a_recorded_rate_is_the_one_that_its_step_used(runner: Callable[..., Ended], project: Path) -> None:
    """One weight w, data x = 1 … 8 and y = 2x: the gradient is 2 (w − 2) × 25.5, the mean of x² being 204 / 8."""
    ended = runner("train", "eight", "run.steps=5", "schedule.warmup_steps=4", "log.every_steps=1")
    weight = 0.0
    for line in ended.metrics():
        assert line["train/loss"] == pytest.approx((weight - 2) ** 2 * 25.5, rel=1e-5, abs=1e-6)  # fp32, near 0
        weight -= line["train/lr"] * 2 * (weight - 2) * 25.5
    assert [line["train/lr"] for line in ended.metrics()] == pytest.approx([0.005, 0.01, 0.015, 0.02, 0.02], rel=1e-12)


# ── Cadences ────────────────────────────────────────────────────────────────────────────────────────────────────────

STEPS = 17
CADENCES = ["log.every_steps=4", "eval.every_steps=3", "checkpoint.every_steps=5", "checkpoint.keep_last=null"]


def logged(ended: Ended) -> list[int]:
    return [line["step"] for line in ended.metrics() if "train/loss" in line]


def evaluated(ended: Ended) -> list[int]:
    return [line["step"] for line in ended.metrics() if "eval/loss" in line]


def saved(ended: Ended) -> list[int]:
    return sorted(int(path.name.removeprefix("step_")) for path in ended.run_dir.checkpoints.glob("step_*"))


@pytest.mark.parametrize("ranks", [1, 2])
def test_each_cadence_is_kept_at_its_own_steps_and_all_at_the_last(runner: Callable[..., Ended], ranks: int) -> None:
    place = placed("ddp", ranks)
    ended = runner("train", "points", f"run.steps={STEPS}", *CADENCES, *place)
    assert logged(ended) == [4, 8, 12, 16, 17]
    assert evaluated(ended) == [3, 6, 9, 12, 15, 17]
    assert saved(ended) == [5, 10, 15, 17]
    every = runner("train", "points", f"run.steps={STEPS}", "eval.every_steps=1", "log.every_steps=1", *place)
    assert logged(every) == evaluated(every) == list(range(1, STEPS + 1))
    of_each = [{line["step"]: line for line in every.metrics() if kind in line} for kind in ("train/loss", "eval/loss")]
    for line in ended.metrics():  # a line is of its step alone, not of the steps since the last line
        assert line == of_each["eval/loss" in line][line["step"]]


def test_an_attempt_that_stops_early_logs_and_saves_there_and_the_next_goes_on_in_step(
    runner: Callable[..., Ended],
) -> None:
    stopped = runner("train", "points", f"run.steps={STEPS}", *CADENCES, "run.stop_at_step=14")
    assert (logged(stopped), evaluated(stopped), saved(stopped)) == ([4, 8, 12, 14], [3, 6, 9, 12], [5, 10, 14])
    resumed = runner("resume", str(stopped.run_dir.path), "run.stop_at_step=null")
    assert logged(resumed) == [4, 8, 12, 14, 16, 17]
    assert evaluated(resumed) == [3, 6, 9, 12, 15, 17]
    assert saved(resumed) == [5, 10, 14, 15, 17]


@pytest.mark.parametrize("ranks", [1, 2])
def test_an_evaluation_before_the_first_step_measures_the_model_as_it_was_built(
    runner: Callable[..., Ended], ranks: int
) -> None:
    place = placed("ddp", ranks)
    plain = runner("train", "points", "run.steps=3", "log.every_steps=1", *place)
    ended = runner("train", "points", "run.steps=3", "log.every_steps=1", "eval.at_start=true", *place)
    assert evaluated(ended) == [0, 3]
    first, *others = ended.metrics()
    assert others == plain.metrics()  # it changes nothing
    unmoved = runner("train", "points", "run.steps=1", "optimizer.lr=0.0", *place)
    assert first["eval/loss"] == unmoved.metrics()[-1]["eval/loss"]


def test_a_run_that_starts_again_evaluates_once_before_its_first_step(runner: Callable[..., Ended]) -> None:
    first = runner("train", "points", "eval.at_start=true", "run.steps=2", "checkpoint=none")
    again = runner("resume", str(first.run_dir.path), "run.stop_at_step=3", "run.steps=4", "checkpoint=sharded")
    assert evaluated(again) == [0]
    assert evaluated(runner("resume", str(first.run_dir.path))) == [0, 4]


def test_what_is_switched_off_never_happens(runner: Callable[..., Ended]) -> None:
    off: list[Any] = ["eval.every_steps=null", "eval.at_end=false", "checkpoint.every_steps=null"]
    ended = runner("train", "points", "run.steps=5", "log.every_steps=100", *off, "checkpoint.at_end=false")
    assert (logged(ended), evaluated(ended), saved(ended)) == ([5], [], [])
