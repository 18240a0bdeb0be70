"""precision=fp16 over whole runs: skipped steps are none, and the scale is part of the run's state."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.conftest import Ended
from tests.parity.options import STRATEGIES, placed, tensors

FP16 = ["precision=fp16"]
# 10⁹ overflows eleven times before it fits; growing every third step, it overflows again and again.
ROUGH = [*FP16, "precision.init_scale=1e9", "precision.growth_interval=3"]


def everyday(*names: str) -> list[Any]:
    """All strategies, of which these run always."""
    return [name if name in names else pytest.param(name, marks=pytest.mark.exhaustive) for name in STRATEGIES]


PAIRED = [each for each in everyday("single", "ddp", "fsdp", "deepspeed_zero2") if each != "single"]


def losses(ended: Any) -> Any:
    return {line["step"]: line["train/loss"] for line in ended.metrics() if "train/loss" in line}


@pytest.mark.parametrize("strategy", everyday("single", "fsdp", "deepspeed_zero2"))
def test_a_run_resumes_bit_by_bit_in_mid_epoch_with_its_scale(runner: Callable[..., Ended], strategy: Any) -> None:
    common = ["points", *ROUGH, "batch.micro_items=3", "model.dropout=0.2", *placed(strategy, 2)]
    expected = runner("train", *common)
    for step in (1, 6) if strategy == "single" else (6,):
        stopped = runner("train", *common, f"run.stop_at_step={step}")
        resumed = runner("resume", str(stopped.run_dir.path))
        assert resumed.metrics() == expected.metrics()
        theirs = tensors(expected, 10, prefix="")
        for name, tensor in tensors(resumed, 10, prefix="").items():
            assert torch.equal(tensor.nan_to_num(), theirs[name].nan_to_num()), name
    assert expected.metrics()[-2]["train/skipped_steps"] > 11


@pytest.mark.parametrize("strategy", PAIRED)
def test_two_ranks_reach_what_one_process_reaches(
    runner: Callable[..., Ended], trained: Callable[..., Ended], strategy: Any
) -> None:
    common = ["train", "points", *FP16, "optimizer=sgd", "optimizer.lr=0.1", "run.steps=9", "clip.norm=0.3"]
    alone, pair = trained(*common), runner(*common, *placed(strategy, 2), "batch.micro_items=2")
    theirs = tensors(alone, 9)
    for name, tensor in tensors(pair, 9).items():
        # Each micro-batch rounds activations and gradients to 11 bits; three times what two rounds on one process do.
        torch.testing.assert_close(tensor, theirs[name], rtol=0, atol=2e-3)


def test_a_skipped_step_moves_neither_schedule_nor_cadences(runner: Callable[..., Ended]) -> None:
    common = ["train", "points", "schedule=linear", "eval.every_steps=5", "run.steps=10"]
    smooth, rough = runner(*common, *FP16), runner(*common, *ROUGH)
    at = [[(line["step"], line.get("train/lr")) for line in ended.metrics()] for ended in (smooth, rough)]
    assert at[0] == at[1]
    assert rough.metrics()[-2]["train/skipped_steps"] > 11
    assert smooth.metrics()[-2]["train/skipped_steps"] == 0
    assert "step skipped: a gradient overflowed at loss scale 1e+09; the scale is now 5e+08" in rough.stderr
    assert rough.run_dir.read_status()["metrics"]["train/loss_scale"] < 1e9


@pytest.mark.parametrize(("before", "after"), [("fp16", "fp32"), ("bf16", "fp16"), ("fp16", "bf16")])
def test_a_run_goes_on_in_another_precision(
    runner: Callable[..., Ended], trained: Callable[..., Ended], before: str, after: str
) -> None:
    stopped = runner("train", "points", f"precision={before}", "run.stop_at_step=4")
    resumed = runner("resume", str(stopped.run_dir.path), f"precision={after}")
    # The same items in the same order; bfloat16's eight bits are the coarsest of the three.
    assert losses(resumed) == pytest.approx(losses(trained("train", "points")), rel=2**-7)


@pytest.mark.parametrize("strategy", ["single", pytest.param("deepspeed_zero3", marks=pytest.mark.exhaustive)])
def test_a_gradient_that_is_never_finite_ends_the_run_with_advice(runner: Callable[..., Ended], strategy: str) -> None:
    impossible = [*placed(strategy, 2), "loss._target_=user_hooks.points.infinite_loss"]
    looked = runner("train", "points", *FP16, *impossible, code=6)
    assert "step 1 is not finite" in looked.stderr  # the loss itself: no scale can help, and the guard says so
    left_alone = ["precision.min_scale=30000", "guard.non_finite=ignore"]
    ended = runner("train", "points", *FP16, *impossible, *left_alone, code=6)
    assert "precision.min_scale=30000 does not allow a smaller one. Look for a division by zero" in ended.stderr
