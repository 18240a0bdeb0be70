"""From what lies on the devices to numbers: the only place where the host waits for them."""

import time
from collections.abc import Mapping, Sequence
from typing import final

from torch import Tensor

from runner.errors import HookError
from runner.protocols import StepLoss, Update, Weighed, World

LOSS = "loss"

Sums = dict[str, tuple[float, float]]
"""Name to (total, count)."""


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
    values = {f"train/{name}": value for name, value in means(loss.rounds, world).items()}
    if update.grad_norm is not None:
        values["train/grad_norm"] = update.grad_norm.item()
    values |= {f"train/{name}": value for name, value in update.record.items()}
    return values | {"train/lr": float(lr)}


def means(losses: Sequence[Weighed], world: World) -> dict[str, float]:
    """Totals and counts summed over micro-batches and ranks, in float64, then divided: no item counts twice.

    Collective, on the host.
    """
    shares: list[Sums] = world.gather_objects(_sums(losses))
    whole: Sums = {}
    for share in shares:
        for name, pair in share.items():
            _add(whole, name, *pair)
    return {name: total / count if count else float("nan") for name, (total, count) in whole.items()}


def _sums(losses: Sequence[Weighed]) -> Sums:
    sums: Sums = {}
    for loss in losses:
        _add(sums, LOSS, _number(loss.value) * loss.weight, _number(loss.count))
        for name, (total, count) in _checked(loss.metrics).items():
            _add(sums, name, _number(total), _number(count))
    return sums


def _number(value: Tensor | float) -> float:
    return float(value.item() if isinstance(value, Tensor) else value)


def _add(sums: Sums, name: str, total: float, count: float) -> None:
    before = sums.get(name, (0.0, 0.0))
    sums[name] = (before[0] + total, before[1] + count)


def _checked(metrics: Mapping[str, tuple[Tensor, Tensor | int]]) -> Mapping[str, tuple[Tensor, Tensor | int]]:
    """The hook's metrics, if they are what a hook may return.

    Raises:
        HookError: one is no pair, or takes the name of the loss.
    """
    for name, pair in metrics.items():
        if name == LOSS:
            raise HookError(f"the loss hook returned a metric named {LOSS!r}, which Loss.total has already. Rename it.")
        if not isinstance(pair, tuple) or len(pair) != 2:
            raise HookError(
                f"the loss hook's metric {name!r} is a {type(pair).__name__}, but must be a pair (sum, count), so that "
                "it can be added up over micro-batches and ranks before it is divided."
            )
    return metrics
