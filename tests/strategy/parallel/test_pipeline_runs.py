"""Whole runs through a pipeline: metrics, averages, checkpoints and predictions are those of one process."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from runner.strategy.parallel.schedule import PipelineSettings, Schedule
from tests.conftest import Ended
from tests.parity.options import TOWER

RUN = [
    *TOWER,
    "run.steps=7",
    "batch.micro_items=4",  # three micro-batches in a step of 12, one in the short step of 2
    "checkpoint.every_steps=null",
    "callback=ema",
    "hardware=cpu",
    "optimizer.lr=0.01",
]
PIPELINE = ["strategy=parallel", "strategy.pipeline=2", "hardware.processes=2"]
ALONE = ["strategy=single", "hardware.processes=1"]


def assert_same(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    """Every line has the same numbers, as far as sums in another order can be the same."""
    assert [line.keys() for line in found] == [line.keys() for line in expected]
    for line, other in zip(found, expected, strict=True):
        assert line == pytest.approx(other, rel=2e-6), line["step"]


def test_a_run_goes_on_between_a_pipeline_and_one_process(runner: Callable[..., Ended], tmp_path: Path) -> None:
    whole = runner(*RUN, *ALONE).metrics()
    begun = runner(*RUN, *PIPELINE, "run.stop_at_step=4", timeout_s=120)
    assert_same(begun.metrics(), whole[: len(begun.metrics())])
    ended = runner("resume", str(begun.run_dir.path), *ALONE, "run.stop_at_step=null")
    assert_same(ended.metrics(), whole)
    begun = runner(*RUN, *ALONE, "run.stop_at_step=4")
    ended = runner("resume", str(begun.run_dir.path), *PIPELINE, "run.stop_at_step=null", timeout_s=120)
    assert_same(ended.metrics(), whole)
    rows = []
    for name, options in (("alone", ALONE), ("pipeline", PIPELINE)):
        out = tmp_path / f"{name}.jsonl"
        given = ["loss._target_=user_hooks.tower.scores", "eval.micro_items=5", *options]
        runner("predict", str(ended.run_dir.path), "--out", str(out), *given, timeout_s=120)
        rows.append([json.loads(line) for line in out.read_text().splitlines()])
    assert len(rows[0]) == 17
    for one, other in zip(*rows, strict=True):
        assert one["scores"] == pytest.approx(other["scores"], rel=1e-5)


@pytest.mark.parametrize(
    ("options", "messages"),
    [
        (
            [
                "batch.micro_items=12",
                "compile.what=model",
                "strategy.sync_each_round=true",
                "strategy.wrap=size",
                "strategy.build=rank_0",
            ],
            [
                "1 micro-batches make a step of a rank, but schedule=1f1b needs one for each of 2 pipeline ranks. Use "
                "batch.micro_items=6 or 4 or 3, or strategy.schedule=gpipe.",
                "model compiles a forward as a whole, but a pipeline cuts it",
                "A pipeline reduces gradients after the last micro-batch",
                "The modules around the blocks, which end early, would be units",
                "use every_rank and strategy.build_own_stages=true",
            ],
        ),
        (["batch.micro_items=auto"], ["auto takes steps without the other ranks"]),
        (["strategy.split=[block.1]", "--build"], ["block.1: the model has no such module. Did you mean blocks.1?"]),
    ],
)
def test_what_cannot_be_piped_is_told_before_launch(
    runner: Callable[..., Ended], options: list[str], messages: list[str]
) -> None:
    told = runner("check", *RUN[1:], *PIPELINE, *options, code=2).stderr
    assert [message for message in messages if message not in told] == []


@pytest.mark.parametrize(
    ("schedule", "stages_per_rank", "message"),
    [
        (Schedule.INTERLEAVED, 1, "interleaves stages of a rank: set stages_per_rank=2"),
        (Schedule.ONE_F_ONE_B, 2, "schedule=1f1b has one stage on each rank"),
        (Schedule.ZERO_BUBBLE_V, 1, "schedule=zero_bubble_v has two stages on each rank"),
        (Schedule.GPIPE, 0, "stages_per_rank=0 must be at least 1"),
    ],
)
def test_schedules_tell_how_many_stages_they_need(schedule: Schedule, stages_per_rank: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PipelineSettings(schedule=schedule, stages_per_rank=stages_per_rank)


def test_a_step_that_is_not_finite_is_traced_to_its_rank(runner: Callable[..., Ended]) -> None:
    ended = runner(*RUN, *PIPELINE, "loss._target_=user_hooks.points.infinite_loss", code=6, timeout_s=120)
    assert "step 1 is not finite" in ended.stderr
    assert "it arose in the loss hook" in ended.stderr
