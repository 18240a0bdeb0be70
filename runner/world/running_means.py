"""Means over micro-batches and ranks: sums and counts are accumulated in float64, and divided once."""

from typing import final

import torch
from torch import Tensor

from runner.protocols import World

Number = Tensor | float


@final
class RunningMeans:
    """Named means, in which each value counts once, however items are divided into micro-batches and ranks.

    Args:
        on_device: add tensors on their device, which must have float64, so that the host waits only for the sums.
            Otherwise the host reads each value: cheapest if there are few and it would wait for them anyway.
    """

    def __init__(self, *, on_device: bool) -> None:
        self._add = add_on_device if on_device else add_on_host
        self._sums: dict[str, tuple[Number, Number]] = {}

    def update(self, name: str, total: Number, count: Number, *, weight: int = 1) -> None:
        """Add `total` times `weight` to the sum of this name, and `count` to its divisor."""
        before, counted = self._sums.get(name, (0.0, 0.0))
        self._sums[name] = self._add(before, total, weight), self._add(counted, count, 1)

    def merge(self, world: World) -> None:
        """Add the sums and counts of all ranks, in rank order, on the host. Collective."""
        local = {name: (float(total), float(count)) for name, (total, count) in self._sums.items()}
        self._sums = {}
        for rank_sums in world.gather_objects(local):
            for name, (total, count) in rank_sums.items():
                before, counted = self._sums.get(name, (0.0, 0.0))
                self._sums[name] = before + total, counted + count

    def uncounted(self) -> list[str]:
        """The names whose count is 0; the host waits for those that were not merged."""
        return [name for name, (_, count) in self._sums.items() if not float(count)]

    def compute(self) -> dict[str, float]:
        """The means by name; NaN where the count is 0."""
        numbers = {name: (float(total), float(count)) for name, (total, count) in self._sums.items()}
        return {name: total / count if count else float("nan") for name, (total, count) in numbers.items()}


def add_on_host(before: Number, value: Number, weight: int) -> Number:
    """before + value × weight; the host waits for the value."""
    return before + float(value.item() if isinstance(value, Tensor) else value) * weight


def add_on_device(before: Number, value: Number, weight: int) -> Number:
    """before + value × weight on the value's device: one kernel, in float64 whatever the value's dtype."""
    if not isinstance(value, Tensor):
        return before + float(value) * weight
    if not isinstance(before, Tensor):
        before = torch.full((), before, dtype=torch.float64, device=value.device)
    # Reshape [1] to a scalar: with a tensor that has dimensions, torch would ignore the dtype of the scalar sum.
    return torch.add(before, value.detach().reshape(()), alpha=weight)
