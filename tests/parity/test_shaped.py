"""Recomputed and compiled models train to the same weights, under every strategy."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from tests.conftest import Ended
from tests.parity.options import STRATEGIES, TOWER, placed, tensors

STEPS = 5
COMMON = [*TOWER, f"run.steps={STEPS}", "optimizer.lr=0.01", "batch.micro_items=3", "eval.every_steps=null"]
SHAPES = {
    "recomputed": ["activation_checkpointing.what=blocks"],
    "selective": ["activation_checkpointing.what=selective", "activation_checkpointing.every=2"],
    "compiled-blocks": ["compile.what=blocks", "compile.backend=aot_eager"],
    "compiled-model": ["compile.what=model", "compile.backend=aot_eager"],
    "both": ["compile.what=blocks", "compile.backend=aot_eager", "activation_checkpointing.what=blocks"],
}
SLICE = {("single", "compiled-model"), ("ddp", "compiled-blocks"), ("fsdp", "both"), ("fsdp_grad_op", "selective")}


def cases() -> Iterator[Any]:
    for strategy in STRATEGIES:
        for shape in SHAPES:
            marks = () if (strategy, shape) in SLICE else (pytest.mark.exhaustive,)
            yield pytest.param(strategy, shape, marks=marks)


def assert_same_weights(ours: Any, theirs: Any) -> None:
    for name, tensor in tensors(theirs, STEPS).items():
        # A compiled graph may sum in another order; five steps of AdamW.
        torch.testing.assert_close(tensors(ours, STEPS)[name], tensor, rtol=0, atol=2e-6)


@pytest.mark.parametrize(("strategy", "shape"), [*cases()])
def test_a_shaped_model_trains_as_the_plain_one(runner: Callable[..., Ended], strategy: Any, shape: Any) -> None:
    if (strategy, shape) == ("deepspeed_zero3", "compiled-model"):
        pytest.skip("its check refuses it")
    plain = runner(*COMMON, *placed(strategy, 2))
    assert_same_weights(runner(*COMMON, *placed(strategy, 2), *SHAPES[shape], timeout_s=150), plain)


@pytest.mark.exhaustive
@pytest.mark.parametrize("strategy", ["single", "ddp", "fsdp"])
def test_inductor_trains_as_eager_does(runner: Callable[..., Ended], strategy: str) -> None:
    plain = runner(*COMMON, *placed(strategy, 2))
    assert_same_weights(runner(*COMMON, *placed(strategy, 2), "compile.what=blocks", timeout_s=170), plain)
