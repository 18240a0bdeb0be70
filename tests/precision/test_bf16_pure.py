"""precision=bf16_pure over whole runs: weights of eight bits, said so, trained, saved and continued."""

from collections.abc import Callable

import pytest
import torch

from tests.conftest import Ended
from tests.parity.options import TOWER, placed, tensors

PURE = "precision=bf16_pure"
# A weight near 1 has eight bits, and another cut of a step rounds otherwise: each of nine steps of 0.1 × a gradient
# below 1 may round to the other side by 2⁻⁸.
ROUNDING = 9 * 2**-8


def test_weights_and_optimizer_are_bfloat16_and_the_log_warns_once(runner: Callable[..., Ended]) -> None:
    ended = runner("train", "points", PURE, "optimizer=adamw")
    saved = tensors(ended, 10, prefix="")
    kept = [tensor for name, tensor in saved.items() if name.startswith(("model.", "optimizer.")) and tensor.ndim]
    assert {tensor.dtype for tensor in kept} == {torch.bfloat16}
    said = "stable mixed-precision training needs float32 trainable parameters"
    assert ended.stderr.count(said) == 1


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_ranks_end_near_one_process(runner: Callable[..., Ended], strategy: str) -> None:
    common = [*TOWER, PURE, "optimizer=sgd", "optimizer.lr=0.1", "run.steps=9"]
    alone, pair = runner(*common), runner(*common, *placed(strategy, 2), "batch.micro_items=3")
    theirs = tensors(alone, 9)
    for name, tensor in tensors(pair, 9).items():
        if name != "model.seen":  # counts forwards, not steps
            torch.testing.assert_close(tensor, theirs[name], rtol=0, atol=ROUNDING)


def test_a_run_goes_on_from_float32_to_bfloat16_and_back(runner: Callable[..., Ended]) -> None:
    stopped = runner("train", "points", "run.stop_at_step=4")
    narrow = runner("resume", str(stopped.run_dir.path), PURE, "run.steps=7")
    assert {tensor.dtype for tensor in tensors(narrow, 7).values()} == {torch.bfloat16}
    wide = runner("resume", str(stopped.run_dir.path), "precision=fp32", "run.steps=10")
    assert {tensor.dtype for tensor in tensors(wide, 10).values()} == {torch.float32}


def test_it_resumes_bit_by_bit(runner: Callable[..., Ended]) -> None:
    expected = runner("train", "points", PURE)
    stopped = runner("train", "points", PURE, "run.stop_at_step=6")
    resumed = runner("resume", str(stopped.run_dir.path))
    assert resumed.metrics() == expected.metrics()
    theirs = tensors(expected, 10)
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in tensors(resumed, 10).items())
