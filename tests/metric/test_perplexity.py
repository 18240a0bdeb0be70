"""Perplexity is the power of the mean over everything, not a mean of powers."""

import math
from typing import Any

import pytest
import torch

from runner.metric.perplexity import Perplexity
from runner.protocols import MicroBatchLoss
from runner.world.solo import SoloWorld

ALONE = SoloWorld(torch.device("cpu"))


def measured(*losses: Any, on_device: bool = True) -> Any:
    meter = Perplexity().build(name="perplexity", on_device=on_device)
    for loss in losses:
        meter.update(loss)
    meter.merge(ALONE)
    return meter.compute()["perplexity"]


@pytest.mark.parametrize("on_device", [True, False])
def test_uneven_micro_batches_weigh_by_what_they_count(on_device: bool) -> None:
    total = MicroBatchLoss(torch.tensor(6.0), 1, torch.tensor(2), False)
    mean = MicroBatchLoss(torch.tensor(1.5), 4, 4, True)  # of 4 items
    filler = MicroBatchLoss(torch.tensor(99.0), 0, 0, False)
    assert measured(total, mean, filler, on_device=on_device) == pytest.approx(math.exp((6 + 6) / (2 + 4)))


def test_a_loss_too_large_for_a_power_is_infinite_and_nothing_counted_is_nan() -> None:
    assert measured(MicroBatchLoss(torch.tensor(1000.0), 1, 1, False)) == math.inf
    assert math.isnan(measured(MicroBatchLoss(torch.tensor(0.0), 1, 0, False)))
