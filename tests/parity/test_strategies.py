"""Laws 3 and 4 over real processes: the run is the same on one process and on two, however a step is cut."""

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import Ended


def weights(ended: Any, step: Any) -> Any:
    tensors: dict[str, torch.Tensor] = {}
    for path in (ended.run_dir.checkpoints / f"step_{step}").glob("*.safetensors"):
        tensors |= {name: tensor for name, tensor in load_file(path).items() if name.startswith("model.")}
    return tensors


CUTS = ["batch.micro_items=6", "batch.micro_items=3", "batch.micro_items=2"]  # accumulate 1, 2, 3 on two ranks
LOSSES = ["compute_loss", "mean_loss"]
CLIPS = ["clip.norm=null", "clip.norm=0.3"]
EVERYDAY = {("compute_loss", 0, 0), ("mean_loss", 1, 1), ("compute_loss", 2, 1), ("mean_loss", 2, 0)}


def cases() -> Iterator[Any]:
    """All of them; every loss, cut and clip, and each pair of a loss and a clip, is among those of every day."""
    for loss, cut, clip in itertools.product(LOSSES, range(len(CUTS)), range(len(CLIPS))):
        marks = () if (loss, cut, clip) in EVERYDAY else (pytest.mark.exhaustive,)
        yield pytest.param(loss, CUTS[cut], CLIPS[clip], marks=marks)


@pytest.mark.parametrize(("loss", "cut", "clip"), [*cases()])
def test_two_ranks_reach_the_weights_of_one_large_batch(
    runner: Callable[..., Ended], trained: Callable[..., Ended], loss: str, cut: str, clip: str
) -> None:
    """Nine steps pass the end of an epoch of 50: its last step has 2 items for two ranks, its last round fillers."""
    common = ["train", "points", f"loss._target_=user_hooks.points.{loss}", clip, "run.steps=9", "optimizer.lr=0.01"]
    alone = trained(*common)
    pair = runner(*common, cut, "strategy=ddp", "hardware.processes=2")
    ours, theirs = weights(pair, 9), weights(alone, 9)
    assert ours.keys() == theirs.keys()
    for name in ours:
        # fp32 sums in another order: a few units in the last place of a weight near 1, after nine steps of AdamW.
        torch.testing.assert_close(ours[name], theirs[name], rtol=0, atol=2e-6)
    for one, two in zip(alone.metrics(), pair.metrics(), strict=True):
        assert one == pytest.approx(two, rel=1e-5)


@pytest.mark.parametrize("cut", ["batch.micro_items=6", "batch.micro_items=4", "batch.micro_items=5 batch.items=15"])
def test_accumulation_on_one_process_is_one_large_batch(
    runner: Callable[..., Ended], trained: Callable[..., Ended], cut: str
) -> None:
    *_, items = ("batch.items=12 " + cut).split()
    items = items if items.startswith("batch.items") else "batch.items=12"
    large = trained("train", "points", items, "run.steps=9")
    small = runner("train", "points", *cut.split(), "run.steps=9")
    for name, tensor in weights(small, 9).items():
        torch.testing.assert_close(tensor, weights(large, 9)[name], rtol=0, atol=2e-6)
