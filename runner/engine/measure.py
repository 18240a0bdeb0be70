"""From what lies on the devices to numbers: the only place where the host waits for them."""

import time
from collections.abc import Callable, Iterable, Mapping
from typing import final

import torch
from torch import Tensor

from runner.errors import HookError
from runner.protocols import MicroBatchLoss, StepLoss, Update, World

LOSS = "loss"

Number = Tensor | float
Plus = Callable[[Number, Number, int], Number]
"""From a sum so far, a number and its weight to the sum with it."""


@final
class Throughput:
    """Items a second since it was last asked."""

    def __init__(self) -> None:
        self.restart(0)

    def restart(self, position: int) -> None:
        """Count from here."""
        self._position = position
        self._time = time.monotonic()

    def items_per_s(self, position: int) -> float:
        """Of all ranks, since the last call; counts from here on."""
        rate = (position - self._position) / max(1e-9, time.monotonic() - self._time)
        self.restart(position)
        return rate


def step_values(loss: StepLoss, update: Update, *, lr: float, world: World) -> dict[str, float]:
    """What is logged of one optimizer step: loss, gradient norm, rate, the hook's own metrics, the strategy's record.

    The loss is that of the whole step, over all items of all ranks. Collective.
    """
    values = {f"train/{name}": value for name, value in means(loss.losses, world, plus=on_host).items()}
    if update.grad_norm is not None:
        values["train/grad_norm"] = update.grad_norm.item()
    values |= {f"train/{name}": value for name, value in update.record.items()}
    return values | {"train/lr": float(lr)}


def means(losses: Iterable[MicroBatchLoss], world: World, *, plus: Plus) -> dict[str, float]:
    """Totals and counts summed over micro-batches and ranks, in float64, then divided: no item counts twice.

    Collective, on the host.

    Args:
        losses: added up as they come; none is kept.
        plus: `on_host`, or `on_device`, with which the host waits only at the end.
    """
    sums = _sums(losses, plus)
    share = {name: (float(total), float(count)) for name, (total, count) in sums.items()}
    whole: dict[str, tuple[float, float]] = {}
    for of_rank in world.gather_objects(share):
        for name, (total, count) in of_rank.items():
            before = whole.get(name, (0.0, 0.0))
            whole[name] = (before[0] + total, before[1] + count)
    return {name: total / count if count else float("nan") for name, (total, count) in whole.items()}


def on_host(before: Number, value: Number, weight: int) -> Number:
    """The host waits for the number: cheapest if there are few, and it would wait for them anyway."""
    return before + float(value.item() if isinstance(value, Tensor) else value) * weight


def on_device(before: Number, value: Number, weight: int) -> Number:
    """The number is added where it lies, and the host goes on: one kernel, in float64 whatever the number's type."""
    if not isinstance(value, Tensor):
        return before + float(value) * weight
    if not isinstance(before, Tensor):
        before = torch.full((), before, dtype=torch.float64, device=value.device)
    # Without its dimension, if it has one element in one: beside that, torch would take the sum's type for a mere hint.
    return torch.add(before, value.detach().reshape(()), alpha=weight)


def _sums(losses: Iterable[MicroBatchLoss], plus: Plus) -> dict[str, tuple[Number, Number]]:
    """Name to (total, count)."""
    sums: dict[str, tuple[Number, Number]] = {}
    for loss in losses:
        total, count = sums.get(LOSS, (0.0, 0.0))
        sums[LOSS] = (plus(total, loss.value, loss.weight), plus(count, loss.count, 1))
        for name, pair in _checked(loss.metrics).items():
            total, count = sums.get(name, (0.0, 0.0))
            sums[name] = (plus(total, pair[0], 1), plus(count, pair[1], 1))
    return sums


def _checked(metrics: Mapping[str, tuple[Tensor, Tensor | int]]) -> Mapping[str, tuple[Tensor, Tensor | int]]:
    """The hook's metrics, if they are what a hook may return.

    Raises:
        HookError: one is no pair of numbers, or takes the name of the loss.
    """
    for name, pair in metrics.items():
        if name == LOSS:
            raise HookError(f"the loss hook returned a metric named {LOSS!r}, which Loss.total has already. Rename it.")
        if not isinstance(pair, tuple) or len(pair) != 2:
            raise HookError(
                f"the loss hook's metric {name!r} is a {type(pair).__name__}, but must be a pair (sum, count), so that "
                "it can be added up over micro-batches and ranks before it is divided."
            )
        for number in pair:
            if isinstance(number, Tensor) and number.numel() != 1:
                raise HookError(
                    f"the loss hook's metric {name!r} holds a tensor of shape {list(number.shape)}, but sum and count "
                    "must be one number each. Add it up with .sum(), or give each part a name of its own."
                )
    return metrics
