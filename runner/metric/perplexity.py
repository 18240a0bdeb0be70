"""Perplexity: the number of equally likely choices that would be as hard to predict."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, final

from runner.config.run_spec import RunSpec
from runner.errors import Fault
from runner.protocols import MicroBatchLoss, World

if TYPE_CHECKING:
    from runner.world.running_means import RunningMeans

LOSS = "loss"


@final
@dataclass(frozen=True, kw_only=True)
class Perplexity:
    """The exponential of the mean loss over everything that the loss hook counts in the evaluation set."""

    def check(self, spec: RunSpec) -> Iterable[Fault]:
        """No faults: it works with every loss."""
        return ()

    def build(self, *, name: str, on_device: bool) -> "PerplexityMeter":
        """A meter without any updates."""
        from runner.world.running_means import RunningMeans

        return PerplexityMeter(RunningMeans(on_device=on_device))


@final
class PerplexityMeter:
    """Exact: takes the mean over all micro-batches and ranks before the exponential."""

    def __init__(self, means: "RunningMeans") -> None:
        self._means = means

    def update(self, loss: MicroBatchLoss) -> None:
        """Add a micro-batch's loss and count."""
        self._means.update(LOSS, loss.value, loss.count, weight=loss.weight)

    def merge(self, world: World) -> None:
        """Add the sums of the other ranks. Collective."""
        self._means.merge(world)

    def compute(self) -> dict[str, float]:
        """The perplexity; infinity if it exceeds float64."""
        try:
            return {"perplexity": math.exp(self._means.compute()[LOSS])}
        except OverflowError:
            return {"perplexity": math.inf}
