"""About what a step will count, known before its first backward: gradients of a total are then of the size of a mean's.

A total sums over so many things that its gradient overflows float16 where that of the mean does not. Its count is known
only after the last forward; an estimate is divided off before backward, and the rest by `update`. As a power of two the
estimate costs no bit.
"""

import math
from typing import Any, Protocol, final

import torch

from runner.protocols import MicroBatchLoss, StepBatches, World
from runner.strategy.common.stateful import Stateful


class CountEstimate(Stateful, Protocol):
    """Guesses counts."""

    def of(self, loss: MicroBatchLoss, batches: StepBatches) -> float:
        """Of this step; the same in all of its rounds and on all ranks. Collective the first time."""
        ...


@final
class NoEstimate:
    """Where gradients have the range of float32, totals stay as they are."""

    def of(self, loss: MicroBatchLoss, batches: StepBatches) -> float:
        """One."""
        return 1.0

    def state(self) -> dict[str, Any]:
        """None."""
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        """Nothing is needed."""


@final
class EstimatedCount:
    """The step's items times what the first micro-batches of the run counted for each of theirs."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._per_item: float | None = None

    def of(self, loss: MicroBatchLoss, batches: StepBatches) -> float:
        """A power of two."""
        if self._per_item is None:
            first = self._world.sum(torch.tensor(float(loss.count), device=self._world.device)).item()
            self._per_item = _power_of_two(first * len(batches.micro_batches) / batches.items)
        return _power_of_two(self._per_item * batches.items)

    def state(self) -> dict[str, Any]:
        """The guess."""
        return {"per_item": self._per_item}

    def load_state(self, state: dict[str, Any]) -> None:
        """Guess as before."""
        self._per_item = state.get("per_item")


def _power_of_two(value: float) -> float:
    """The nearest; 1 for nothing."""
    return 2.0 ** round(math.log2(value)) if value > 0 else 1.0
