"""Perplexity: how many equally likely choices would be as hard to predict."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import final

from runner.config.run_spec import RunSpec
from runner.errors import Fault
from runner.protocols import MicroBatchLoss, World
from runner.world.running_means import RunningMeans

LOSS = "loss"


@final
@dataclass(frozen=True, kw_only=True)
class Perplexity:
    """e to the power of the mean loss, over all that the loss hook counts in the evaluation set."""

    def check(self, spec: RunSpec) -> Iterable[Fault]:
        """It goes with every loss."""
        return ()

    def build(self, *, on_device: bool) -> "PerplexityMeter":
        """An empty meter."""
        return PerplexityMeter(RunningMeans(on_device=on_device))


@final
class PerplexityMeter:
    """Exact: the mean is taken over micro-batches and ranks before the power."""

    def __init__(self, means: RunningMeans) -> None:
        self._means = means

    def update(self, loss: MicroBatchLoss) -> None:
        """Add the loss and its count."""
        self._means.update(LOSS, loss.value, loss.count, weight=loss.weight)

    def merge(self, world: World) -> None:
        """Add those of the other ranks. Collective."""
        self._means.merge(world)

    def compute(self) -> dict[str, float]:
        """Infinity where the power exceeds float64."""
        try:
            return {"perplexity": math.exp(self._means.compute()[LOSS])}
        except OverflowError:
            return {"perplexity": math.inf}
