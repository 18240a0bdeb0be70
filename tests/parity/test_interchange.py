"""Law 6: a checkpoint belongs to the run. Saved under one strategy, it goes on under another as if nothing had been."""

import pytest
import torch

from tests.parity.options import STRATEGIES, TOWER, placed, tensors

SAVED_AT, STEPS = 4, 7  # the next three losses; step 5 ends an epoch of 50 with 2 items
COMMON = [*TOWER, f"run.steps={STEPS}", "optimizer.lr=0.01", "batch.micro_items=3", "checkpoint.every_steps=null"]
SHARDED = ("fsdp", "fsdp_grad_op", "hsdp", "hsdp_grad_op")
SLICE = {
    ("fsdp", "single", 1),
    ("fsdp", "ddp", 2),
    ("fsdp_grad_op", "hsdp", 2),
    ("single", "fsdp", 2),
    ("ddp", "hsdp_grad_op", 2),
}


def cases():
    """Everything that two ranks (or one) save × everything that 1, 2 and 4 load."""
    for saved in STRATEGIES:
        for loaded in STRATEGIES:
            for ranks in (1,) if loaded == "single" else (1, 2, 4):
                marks = () if (saved, loaded, ranks) in SLICE else (pytest.mark.exhaustive,)
                yield pytest.param(saved, loaded, ranks, marks=marks)


def losses(ended):
    """By step, of what follows the checkpoint."""
    return {
        line["step"]: line["train/loss"] for line in ended.metrics() if line["step"] > SAVED_AT and "train/loss" in line
    }


def moved(runner, saved, loaded):
    stopped = runner("train", *COMMON[1:], f"run.stop_at_step={SAVED_AT}", *saved)
    return runner("resume", str(stopped.run_dir.path), *loaded)


@pytest.mark.parametrize(("saved", "loaded", "ranks"), [*cases()])
def test_a_run_is_continued_by_any_strategy(runner, saved, loaded, ranks):
    expected = runner(*COMMON, *placed(saved, 2))
    cut = ["batch.micro_items=1"] if ranks == 4 else []
    resumed = moved(runner, placed(saved, 2), [*placed(loaded, ranks), *cut])
    assert losses(resumed) == pytest.approx(losses(expected), abs=1e-6)
    theirs = tensors(expected, STEPS, prefix="")
    ours = tensors(resumed, STEPS, prefix="")
    for name in (name for name in theirs if name.startswith(("model.", "optimizer.")) and name != "model.seen"):
        # fp32 sums in another order, through three steps of AdamW.
        torch.testing.assert_close(ours[name], theirs[name], rtol=0, atol=2e-6)


@pytest.mark.parametrize("strategy", SHARDED)
def test_two_ranks_of_the_same_family_continue_bit_by_bit(runner, strategy):
    other = SHARDED[SHARDED.index(strategy) ^ 1]  # what is gathered for longer has the same numbers in it
    expected = runner(*COMMON, *placed(strategy, 2))
    for loaded in (strategy, other):
        resumed = moved(runner, placed(strategy, 2), placed(loaded, 2))
        assert losses(resumed) == losses(expected)
        theirs = tensors(expected, STEPS)
        assert all(torch.equal(tensor, theirs[name]) for name, tensor in tensors(resumed, STEPS).items())
