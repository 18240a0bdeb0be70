"""What is not finite ends the run or is skipped, and where it came from is in the run's directory."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from runner.data.order import StoredPermutation
from runner.data.steps import RankSteps
from tests.conftest import Ended
from tests.parity.options import tensors

SICK = 31  # tests/project/user_hooks/sick.py
HOOKS = [
    "model._target_=user_hooks.sick.build_model",
    "~model.dropout",
    "data._target_=user_hooks.sick.build_data",
    "loss._target_=user_hooks.sick.loss",
    "eval.every_steps=null",
]
TRAIN = ["train", "points", *HOOKS, "log.every_steps=5", "order=randperm"]
PAIR = ["strategy=ddp", "hardware.processes=2"]


def sick_step(ranks: int = 1, micro_items: int = 12) -> tuple[int, int, int, list[int]]:
    """Step, rank, round and items of the micro-batch in which the sick item is read first."""
    order = StoredPermutation(50, seed=0)
    every_rank = [
        RankSteps(order=order, step_items=12, micro_items=micro_items, rank=rank, ranks=ranks).starting_at(0)
        for rank in range(ranks)
    ]
    for step in range(1, 6):
        for rank, steps in enumerate(every_rank):
            for number, share in enumerate(next(steps).micro_batches):
                if SICK in share.indices[: share.items]:
                    return step, rank, number, share.indices
    raise AssertionError("not in the first epoch")


def guarded(ended: Any) -> Any:
    return json.loads(ended.run_dir.guard.read_text())


def finite(tensors: Any) -> Any:
    return all(bool(tensor.isfinite().all()) for tensor in tensors.values())


def test_a_sharded_model_is_looked_into_too(project: Path, runner: Callable[..., Ended]) -> None:
    step, rank, _, items = sick_step(ranks=2, micro_items=6)
    where = project / "run"
    runner(*TRAIN, "strategy=fsdp", "hardware.processes=2", "checkpoint.every_steps=1", f"run.dir={where}", code=6)
    (event,) = json.loads((where / "guard.json").read_text())
    (found,) = event["found"]
    assert (event["step"], found["rank"], found["items"], found["module"]) == (step, rank, items, "middle (Divide)")


@pytest.mark.parametrize("saved", ["checkpoint.every_steps=null", "checkpoint.every_steps=1"])
def test_a_loss_that_is_not_finite_stops_the_run_and_says_where_it_came_from(
    project: Path, runner: Callable[..., Ended], saved: str
) -> None:
    step, _, _, items = sick_step()
    ended = runner(*TRAIN, saved, f"run.dir={project / 'run'}", code=6)
    assert f"step {step} is not finite. On rank 0, micro-batch 0, items {', '.join(map(str, items))} of" in ended.stderr
    assert "the first module to return nan or inf is middle (Divide)" in ended.stderr
    assert "guard.non_finite=skip skips such steps" in ended.stderr
    (event,) = guarded(ended)
    (found,) = event["found"]
    assert event["step"] == step
    assert (found["rank"], found["items"], found["what"], found["module"]) == (0, items, "loss", "middle (Divide)")
    for path in ended.run_dir.checkpoints.glob("step_*"):
        assert finite(tensors(ended, int(path.name.removeprefix("step_")))), "what is not finite is never committed"


def test_a_gradient_that_is_not_finite_stops_the_run_too(project: Path, runner: Callable[..., Ended]) -> None:
    step, _, _, items = sick_step()
    ended = runner(*TRAIN, "+model.middle=root", f"run.dir={project / 'run'}", code=6)
    assert "the gradient is not finite; it arose in the backward pass" in ended.stderr
    (event,) = guarded(ended)
    (found,) = event["found"]
    assert (event["step"], found["items"], found["module"]) == (step, items, "middle (Root)")


def test_of_two_ranks_the_one_with_the_item_is_named(project: Path, runner: Callable[..., Ended]) -> None:
    step, rank, number, items = sick_step(ranks=2, micro_items=3)
    for middle in ("divide", "root"):
        where = project / middle
        ended = runner(*TRAIN, *PAIR, "batch.micro_items=3", f"+model.middle={middle}", f"run.dir={where}", code=6)
        (event,) = json.loads((where / "guard.json").read_text())
        (found,) = event["found"]
        assert event["step"] == step
        assert (found["rank"], found["micro_batch"], found["items"]) == (rank, number, items), ended.stderr


def test_a_step_that_is_left_out_moves_nothing(runner: Callable[..., Ended]) -> None:
    ended = runner(*TRAIN, "guard.non_finite=skip", "run.steps=9")
    step, *_ = sick_step()
    events = guarded(ended)
    assert [event["step"] for event in events] == [step, events[1]["step"]]  # once an epoch of five steps, two begun
    assert ended.metrics()[-1]["guard/skipped_steps"] == 2
    assert ended.run_dir.read_status()["step"] == 9
    assert finite(tensors(ended, 9))
    assert finite(tensors(ended, 9, "optimizer."))
    assert "skipped: not finite. On rank 0" in ended.stderr


def test_a_run_that_leaves_out_step_after_step_ends(project: Path, runner: Callable[..., Ended]) -> None:
    options = ["guard.non_finite=skip", "guard.max_skipped=3", "+data.all_items=true", f"run.dir={project / 'run'}"]
    ended = runner(*TRAIN, *options, code=6)
    assert "guard.max_skipped=3 steps in a row were skipped, and the next one is not finite either" in ended.stderr
    assert len(guarded(ended)) == 3


def test_ignored_is_ignored(runner: Callable[..., Ended]) -> None:
    ended = runner(*TRAIN, "guard.non_finite=ignore")
    assert not ended.run_dir.guard.exists()
    assert not torch.stack([tensor.sum() for tensor in tensors(ended, 10).values()]).isfinite().all()


def test_what_does_not_come_again_is_said_to_be_so(project: Path, runner: Callable[..., Ended]) -> None:
    (project / "user_hooks" / "once.py").write_text(
        "import torch\nfrom user_hooks.points import mean_loss\n"
        "calls = 0\n"
        "def loss(model, batch):\n"
        "    global calls\n    calls += 1\n"
        "    return mean_loss(model, batch) * (float('nan') if calls == 3 else 1)\n"
    )
    ended = runner("train", "points", "loss._target_=user_hooks.once.loss", code=6)
    assert (
        "the loss or the gradient of step 3 is not finite, but it was when steps 1 to 3 were repeated" in ended.stderr
    )
    assert "Use run.deterministic=true to make it so" in ended.stderr
