"""Means over micro-batches and ranks: sums and counts are added up in float64, and divided once."""

from typing import final

import torch
from torch import Tensor

from runner.protocols import World

Number = Tensor | float


@final
class RunningMeans:
    """Named means. No number counts twice, and none is weighed by how the items were split.

    Args:
        on_device: add tensors on their device, so that the host waits only for the sums; the device must have float64.
            Otherwise each number is read by the host: cheapest if there are few, and it would wait for them anyway.
    """

    def __init__(self, *, on_device: bool) -> None:
        self._add = add_on_device if on_device else add_on_host
        self._sums: dict[str, tuple[Number, Number]] = {}

    def update(self, name: str, total: Number, count: Number, *, weight: int = 1) -> None:
        """Add `total` times `weight` to the name's sum, and `count` to what it is divided by. None is kept."""
        before, counted = self._sums.get(name, (0.0, 0.0))
        self._sums[name] = self._add(before, total, weight), self._add(counted, count, 1)

    def merge(self, world: World) -> None:
        """Add the sums and counts of all ranks, in rank order, on the host. Collective."""
        mine = {name: (float(total), float(count)) for name, (total, count) in self._sums.items()}
        self._sums = {}
        for of_rank in world.gather_objects(mine):
            for name, (total, count) in of_rank.items():
                before, counted = self._sums.get(name, (0.0, 0.0))
                self._sums[name] = before + total, counted + count

    def compute(self) -> dict[str, float]:
        """Name to mean; NaN where nothing was counted."""
        numbers = {name: (float(total), float(count)) for name, (total, count) in self._sums.items()}
        return {name: total / count if count else float("nan") for name, (total, count) in numbers.items()}


def add_on_host(before: Number, value: Number, weight: int) -> Number:
    """before + value × weight; the host waits for the value."""
    return before + float(value.item() if isinstance(value, Tensor) else value) * weight


def add_on_device(before: Number, value: Number, weight: int) -> Number:
    """before + value × weight where the value lies: one kernel, in float64 whatever the value's type."""
    if not isinstance(value, Tensor):
        return before + float(value) * weight
    if not isinstance(before, Tensor):
        before = torch.full((), before, dtype=torch.float64, device=value.device)
    # As a scalar, if it has one element in one dimension: beside that, torch would ignore the type of the sum.
    return torch.add(before, value.detach().reshape(()), alpha=weight)
