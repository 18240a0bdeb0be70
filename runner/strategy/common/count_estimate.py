"""An estimate of what a step will count, made before its first backward: it keeps the gradients of a total in range.

The gradient of a total over many things overflows float16 where that of the mean does not, and the count is known only
after the last forward. So losses are divided by an estimate before backward, and by the rest in `update`. The estimate
is a power of two, so that dividing by it costs no precision.
"""

import math
from typing import Any, Protocol, final

import torch

from runner.protocols import MicroBatchLoss, Stateful, StepBatches, World


class CountEstimate(Stateful, Protocol):
    """Estimates what a step counts."""

    def of(self, loss: MicroBatchLoss, batches: StepBatches) -> float:
        """For this step: the same for all of its micro-batches and on all ranks. Collective the first time."""
        ...


@final
class NoEstimate:
    """Leaves totals as they are: gradients have the range of float32."""

    def of(self, loss: MicroBatchLoss, batches: StepBatches) -> float:
        """One."""
        return 1.0

    def state_dict(self) -> dict[str, Any]:
        """It keeps nothing."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """It needs nothing."""


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

    def state_dict(self) -> dict[str, Any]:
        """The count per item."""
        return {"per_item": self._per_item}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Estimate as before."""
        self._per_item = state_dict.get("per_item")


def _power_of_two(value: float) -> float:
    """The nearest; 1 for nothing."""
    return 2.0 ** round(math.log2(value)) if value > 0 else 1.0
