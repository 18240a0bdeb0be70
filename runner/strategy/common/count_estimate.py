"""An estimate of a step's count, made before its first backward, which keeps the gradients of a sum in range.

The gradient of a sum over many elements may overflow float16 where that of the mean does not, and the count is known
only after the last forward. So losses are divided by an estimate before backward, and `update` corrects for the actual
count. The estimate is a power of two, so that dividing by it loses no precision.
"""

import math
from typing import Any, Protocol, final

import torch

from runner.protocols import MicroBatchLoss, Stateful, StepBatches, World


class CountEstimate(Stateful, Protocol):
    """Estimates the count that a step's loss is divided by."""

    def of(self, loss: MicroBatchLoss, batches: StepBatches) -> float:
        """The estimate for a step, equal for all its micro-batches and on all ranks. Collective the first time."""
        ...


@final
class NoEstimate:
    """Does not divide: for gradients with the range of float32."""

    def of(self, loss: MicroBatchLoss, batches: StepBatches) -> float:
        """Always 1, which divides nothing."""
        return 1.0

    def state_dict(self) -> dict[str, Any]:
        """There is no state to save."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """There is no state to load."""


@final
class EstimatedCount:
    """The step's items times the count per item in the first micro-batch of each rank."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._per_item: float | None = None

    def of(self, loss: MicroBatchLoss, batches: StepBatches) -> float:
        """The estimate, rounded to a power of two. Collective the first time."""
        if self._per_item is None:
            first = self._world.sum(torch.tensor(float(loss.count), device=self._world.device)).item()
            self._per_item = power_of_two(first * len(batches.micro_batches) / batches.items)
        return power_of_two(self._per_item * batches.items)

    def state_dict(self) -> dict[str, Any]:
        """The count per item; None before the first step."""
        return {"per_item": self._per_item}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue with the saved count per item."""
        self._per_item = state_dict.get("per_item")


def power_of_two(value: float) -> float:
    """The nearest power of two; 1 if the value is 0."""
    return 2.0 ** round(math.log2(value)) if value > 0 else 1.0
