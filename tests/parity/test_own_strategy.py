"""A strategy that a user wrote, one class and one YAML file in their own directory, keeps the promises of ours.

Its files are those that docs/own_strategy.md shows.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import Ended
from tests.docs.test_commands import CHECKOUT, FILE
from tests.parity.options import TOWER, tensors

ONCE = ["strategy=once", "hardware.processes=2", "batch.micro_items=3"]  # of 12 items: two rounds on each of two ranks
STEPS, STOPPED_AT = 7, 4  # step 5 ends an epoch of 50 with 2 items for two ranks: its second round is fillers


@pytest.fixture(autouse=True)
def files_of_the_page(project: Path) -> None:
    """What the page shows, in the user's project."""
    for name, content in FILE.findall((CHECKOUT / "docs" / "own_strategy.md").read_text()):
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_text(content)


def close(ours: Any, theirs: Any) -> None:
    """Model and optimizer of two runs' last checkpoints."""
    ours, theirs = tensors(ours, STEPS, prefix=""), tensors(theirs, STEPS, prefix="")
    names = {name for name in theirs if name.startswith(("model.", "optimizer.")) and name != "model.seen"}
    assert names == {name for name in ours if name.startswith(("model.", "optimizer.")) and name != "model.seen"}
    for name in names:
        # fp32 sums in another order, through seven steps of AdamW.
        torch.testing.assert_close(ours[name], theirs[name], rtol=0, atol=2e-6)


@pytest.mark.parametrize(
    ("loss", "clip"),
    [
        ("compute_loss", "clip.norm=0.3"),
        ("mean_loss", "clip.norm=null"),
        pytest.param("compute_loss", "clip.norm=null", marks=pytest.mark.exhaustive),
        pytest.param("mean_loss", "clip.norm=0.3", marks=pytest.mark.exhaustive),
    ],
)
def test_two_ranks_reach_the_weights_of_one_process(runner: Callable[..., Ended], loss: str, clip: str) -> None:
    """Counts are uneven (weights 1 to 4 of each item), and so is the end of the epoch."""
    common = ["train", "points", f"loss._target_=user_hooks.points.{loss}", clip, f"run.steps={STEPS}"]
    alone, pair = runner(*common), runner(*common, *ONCE)
    close(pair, alone)
    for one, two in zip(alone.metrics(), pair.metrics(), strict=True):
        assert two == pytest.approx(one, rel=1e-5)


@pytest.mark.parametrize(("first", "then"), [("once", "ddp"), ("ddp", "once")])
def test_ddp_continues_its_checkpoint_and_it_continues_that_of_ddp(
    runner: Callable[..., Ended], first: str, then: str
) -> None:
    """With tied parameters and a buffer."""
    common = [*TOWER, f"run.steps={STEPS}", *ONCE[1:]]
    expected = runner(*common, f"strategy={first}")
    stopped = runner(*common, f"strategy={first}", f"run.stop_at_step={STOPPED_AT}")
    close(runner("resume", str(stopped.run_dir.path), f"strategy={then}"), expected)


NORMED = """
from torch import nn

def build_model():
    return nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 2))
"""


def test_buffers_are_those_of_rank_0_as_under_ddp(runner: Callable[..., Ended], project: Path) -> None:
    """Each rank evaluates its items with its own running statistics, so that the evaluations show them."""
    (project / "user_hooks" / "normed.py").write_text(NORMED)
    model = ["train", "points", "model._target_=user_hooks.normed.build_model", "~model.dropout", "run.steps=4"]
    common = [*model, "eval.every_steps=2", "hardware.processes=2"]
    synced, ours, loose = (
        runner(*common, *strategy).metrics()[-1]["eval/loss"]
        for strategy in (["strategy=ddp"], ["strategy=once"], ["strategy=once", "strategy.sync_buffers=false"])
    )
    assert ours == pytest.approx(synced, rel=1e-6)
    assert loose != pytest.approx(synced, rel=1e-5)  # 1.5e-4 apart after four steps


def test_its_keys_are_checked_like_those_of_any_option(runner: Callable[..., Ended]) -> None:
    ended = runner("check", "points", *ONCE, "strategy.sync_bufers=true", code=2)
    assert "strategy.sync_bufers" in ended.stderr + ended.stdout
    assert "sync_buffers" in ended.stderr + ended.stdout


WIDE = [
    "strategy=wide",
    'strategy.colwise=["0"]',
    'strategy.rowwise=["3"]',
    "hardware=cpu",
    "hardware.oversubscribe=true",
]
FOUR, PAIR = [*WIDE, "hardware.processes=4"], ["strategy=ddp", "hardware.processes=2"]


@pytest.mark.parametrize(
    ("loss", "ranks"),
    [
        ("compute_loss", 4),
        ("mean_loss", 2),
        pytest.param("compute_loss", 2, marks=pytest.mark.exhaustive),
        pytest.param("mean_loss", 4, marks=pytest.mark.exhaustive),
    ],
)
def test_a_tensor_axis_counts_each_item_once(runner: Callable[..., Ended], loss: str, ranks: int) -> None:
    """Two ranks hold one model; four are two replicas of that, which read different items. Dropout would differ."""
    common = ["train", "points", f"loss._target_=user_hooks.points.{loss}", "model.dropout=0", "clip.norm=0.3"]
    common += [f"run.steps={STEPS}", "eval.every_steps=3", "batch.micro_items=3"]
    alone, wide = runner(*common), runner(*common, *WIDE, f"hardware.processes={ranks}")
    close(wide, alone)
    for one, many in zip(alone.metrics(), wide.metrics(), strict=True):
        assert many == pytest.approx(one, rel=1e-5)


JUDGED = """
from user_hooks import points

def loss(model, batch):
    return points.compute_loss(model, batch)._replace(outputs={"first": batch[0][:, 0], "scores": model(batch[0])})

def in_order(first):
    return {"sum": sum(place * value for place, value in enumerate(first.tolist())), "items": len(first)}
"""


def test_jobs_over_a_tensor_axis_count_and_write_each_item_once(runner: Callable[..., Ended], project: Path) -> None:
    """Four ranks in two pairs: a pair holds one model and reads the same items, of which there are 17."""
    (project / "user_hooks" / "judged.py").write_text(JUDGED)
    own = ["loss._target_=user_hooks.judged.loss", "+metric.in_order._target_=user_hooks.judged.in_order"]
    run = runner("train", "points", *own, "run.steps=2", "run.dir=run", "eval.micro_items=3")
    logged = {name: value for name, value in run.metrics()[-1].items() if name.startswith("eval/")}
    assert logged["eval/in_order/items"] == 17
    evaluation = json.loads(Path(runner("evaluate", "run", *FOUR).stdout.splitlines()[-1]).read_text())
    assert evaluation["metrics"] == pytest.approx(logged, rel=1e-5)
    runner("predict", "run", "--out", "one.jsonl")
    runner("predict", "run", *FOUR, "--out", "four.jsonl")
    one, many = (
        [json.loads(line) for line in (project / name).read_text().splitlines()] for name in ("one.jsonl", "four.jsonl")
    )
    assert [row["first"] for row in many] == [row["first"] for row in one]
    assert [row["scores"] for row in many] == [pytest.approx(row["scores"], abs=1e-6) for row in one]


def test_the_peers_of_a_tensor_axis_draw_the_same_dropout(runner: Callable[..., Ended]) -> None:
    """The layer between the split ones drops the same rows on both, or their sums would belong to different inputs."""
    common = ["train", "points", "model.dropout=0.5", f"run.steps={STEPS}", *WIDE, "hardware.processes=2"]
    first, second = runner(*common), runner(*common)
    assert first.metrics() == second.metrics()


@pytest.mark.parametrize(("first", "then"), [(FOUR, PAIR), (PAIR, FOUR)], ids=["to ddp", "from ddp"])
def test_a_split_models_checkpoint_resumes_under_ddp_and_the_other_way_round(
    runner: Callable[..., Ended], first: Any, then: Any
) -> None:
    """Of the four ranks, two hold one model, and the other two read other items."""
    common = ["train", "points", "model.dropout=0", f"run.steps={STEPS}", *first]
    expected = runner(*common)
    stopped = runner(*common, f"run.stop_at_step={STOPPED_AT}")
    close(runner("resume", str(stopped.run_dir.path), *then), expected)


def test_ranks_that_do_not_divide_are_a_fault_before_launch(runner: Callable[..., Ended]) -> None:
    ended = runner("check", "points", *WIDE, "strategy.tensor=3", "hardware.processes=2", code=2)
    assert "strategy.tensor=3 does not divide the 2 ranks" in ended.stdout + ended.stderr
