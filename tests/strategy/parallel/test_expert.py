"""What the expert axis promises: one process's losses, a share of the memory, any checkpoint, words for bad input."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from runner.strategy.ddp import DDP
from runner.strategy.fsdp.fsdp import FSDP
from runner.strategy.parallel import Parallel
from runner.strategy.single import Single
from runner.world.solo import SoloWorld
from tests.strategy.parallel.small_mixture import trained
from tests.strategy.ranks import on_ranks


def alone(*args: Any) -> Any:
    return trained(SoloWorld(torch.device("cpu")), Single(), *args)


def on(num_ranks: int, part: Any, *args: Any, scratch: Path, function: Any = trained) -> Any:
    """What each rank returns."""
    return on_ranks(num_ranks, function, part, *args, axes=part.axes(num_ranks), scratch=scratch)


LAYOUTS = {
    "expert=2": (2, Parallel(expert=2, shard=1)),
    "expert=2 shard=2": (4, Parallel(expert=2, shard=2)),
    "expert=2 replicate=2": (4, Parallel(expert=2, shard=1, replicate=2)),
    "fsdp": (2, FSDP()),
    "ddp": (2, DDP()),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("num_micro_batches", "clip"), [(1, None), (3, 0.05)])
def test_losses_are_those_of_one_process(layout: Any, num_micro_batches: Any, clip: Any, tmp_path: Path) -> None:
    num_ranks, part = LAYOUTS[layout]
    losses, norms, weights = alone(num_micro_batches, clip)
    for rank in on(num_ranks, part, num_micro_batches, clip, scratch=tmp_path):
        assert_close(rank[0], losses, rtol=0, atol=1e-6)
        assert_close(rank[1], norms, rtol=1e-5, atol=0)
        assert_close(rank[2], weights, rtol=0, atol=2e-5)
