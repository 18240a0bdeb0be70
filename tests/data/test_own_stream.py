"""A stream that a user wrote keeps the promises of a dataset. Its file is the one that docs/own_stream.md shows."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Ended
from tests.docs.test_commands import CHECKOUT, FILE

STREAM = [
    "pydoc_lm",
    "data._target_=user_hooks.packed.build_data",
    "data.context=16",
    "model.width=12",
    "model.depth=1",
    "batch.micro_items=4",
    "log.every_steps=1",
    "run.steps=8",
    "schedule.warmup_steps=2",
    "eval.every_steps=null",
    "eval.at_end=false",
    "hardware=cpu",
]
PAIR = ["strategy=ddp", "hardware.processes=2"]
SICK = """
from runner import Loss
from user_hooks.pydoc_lm import compute_loss

def loss(model, windows):
    total, count, metrics, _ = compute_loss(model, windows)
    return Loss(total / (windows[:, 0] != ord("w")).all(), count, metrics)
"""


@pytest.fixture(autouse=True)
def files_of_the_page(project: Path) -> None:
    for name, content in FILE.findall((CHECKOUT / "docs" / "own_stream.md").read_text()):
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_text(content)


def losses(ended: Any) -> Any:
    return [line["train/loss"] for line in ended.metrics()]


def test_it_trains_alike_on_one_and_two_ranks_and_continues_with_either(runner: Callable[..., Ended]) -> None:
    alone = runner("train", *STREAM)
    assert len(losses(alone)) == 8
    assert len({*losses(alone)}) == 8
    stopped = runner("train", *STREAM, *PAIR, "run.stop_at_step=5")
    resumed = runner("resume", str(stopped.run_dir.path), "strategy=single", "hardware.processes=1")
    # fp32 sums over ranks in another order, through eight steps of AdamW.
    assert losses(resumed) == pytest.approx(losses(alone), rel=1e-5)


def test_it_continues_in_mid_run_to_the_bit(runner: Callable[..., Ended]) -> None:
    whole = runner("train", *STREAM)
    stopped = runner("train", *STREAM, "run.stop_at_step=3")
    assert runner("resume", str(stopped.run_dir.path)).metrics() == whole.metrics()


@pytest.fixture
def sick(project: Path) -> Any:
    """A loss that is infinite for windows that begin with a w."""
    (project / "user_hooks" / "sick_text.py").write_text(SICK)
    return [*STREAM, "loss._target_=user_hooks.sick_text.loss", "checkpoint.every_steps=2", f"run.dir={project / 'r'}"]


def test_a_loss_that_is_not_finite_is_reported_without_items(
    project: Path, runner: Callable[..., Ended], sick: Any
) -> None:
    ended = runner("train", *sick, *PAIR, code=6)
    (event,) = json.loads((project / "r" / "guard.json").read_text())
    (found,) = event["found"]
    assert found["items"] is found["epoch"] is None
    where = f"On rank {found['rank']}, micro-batch {found['micro_batch']}: the loss is not finite"
    assert f"step {event['step']} is not finite. {where}" in ended.stderr


def test_a_step_that_is_not_finite_can_be_left_out(project: Path, runner: Callable[..., Ended], sick: Any) -> None:
    ended = runner("train", *sick, "guard.non_finite=skip", "guard.max_skipped=100")
    events = json.loads((project / "r" / "guard.json").read_text())
    assert events
    assert all(found["items"] is None for event in events for found in event["found"])
    assert ended.run_dir.read_status()["step"] == 8
    assert "skipped: not finite. On rank 0" in ended.stderr
