"""Turns tensors on devices into numbers: the only place where the host waits for them."""

import time
from collections.abc import Iterable, Mapping
from typing import final

from torch import Tensor

from runner.errors import HookError
from runner.protocols import MicroBatchLoss, StepLoss, Update, World
from runner.world.running_means import RunningMeans

LOSS = "loss"


@final
class Throughput:
    """Measures items per second since the last measurement."""

    def __init__(self) -> None:
        self.restart(0)

    def restart(self, position: int) -> None:
        """Start a new measurement at this position."""
        self._position = position
        self._time = time.monotonic()

    def items_per_s(self, position: int) -> float:
        """The rate of all ranks since the last call; starts a new measurement."""
        rate = (position - self._position) / max(1e-9, time.monotonic() - self._time)
        self.restart(position)
        return rate


@final
class LossMeans:
    """The meter that every run has: means of the loss and of each (sum, count) metric of the loss hook."""

    def __init__(self, *, on_device: bool) -> None:
        self._means = RunningMeans(on_device=on_device)

    def update(self, loss: MicroBatchLoss) -> None:
        """Add the micro-batch to the sums.

        Raises:
            HookError: a metric is not a pair of numbers, or has the name of the loss.
        """
        self._means.update(LOSS, loss.value, loss.count, weight=loss.weight)
        for name, (total, count) in _checked(loss.metrics).items():
            self._means.update(name, total, count)

    def merge(self, world: World) -> None:
        """Add the sums of all ranks. Collective, on the host."""
        self._means.merge(world)

    def uncounted(self) -> list[str]:
        """The names whose count is 0: their means are 0 / 0, which is nan."""
        return self._means.uncounted()

    def compute(self) -> dict[str, float]:
        """The mean loss as `loss`, and the means of the hook's metrics by their names."""
        return self._means.compute()


def step_values(loss: StepLoss, update: Update, *, rates: Mapping[str, float], world: World) -> dict[str, float]:
    """The logged values of one optimizer step: loss, gradient norm, learning rates, the hook's and strategy's metrics.

    The loss is the mean over all items of the step on all ranks. Collective.

    Args:
        world: the ranks over which the loss is summed.
    """
    values = {f"train/{name}": value for name, value in means(loss.losses, world, on_device=False).items()}
    if update.grad_norm is not None:
        values["train/grad_norm"] = update.grad_norm.item()
    values |= {f"train/{name}": value for name, value in update.record.items()}
    return values | {f"train/{name}": rate for name, rate in rates.items()}


def means(losses: Iterable[MicroBatchLoss], world: World, *, on_device: bool) -> dict[str, float]:
    """The means of these losses over all ranks. Collective, on the host.

    Args:
        losses: summed one at a time; none is stored.
        on_device: as in `RunningMeans`.
    """
    meter = LossMeans(on_device=on_device)
    for loss in losses:
        meter.update(loss)
    meter.merge(world)
    return meter.compute()


def _checked(metrics: Mapping[str, tuple[Tensor, Tensor | int]]) -> Mapping[str, tuple[Tensor, Tensor | int]]:
    """The hook's metrics, after checking them.

    Raises:
        HookError: one is not a pair of numbers, or has the name of the loss.
    """
    for name, pair in metrics.items():
        if name == LOSS:
            raise HookError(f"the loss hook returned a metric named {LOSS!r}, which Loss.total has already. Rename it.")
        if not isinstance(pair, tuple) or len(pair) != 2:
            raise HookError(
                f"the loss hook's metric {name!r} is a {type(pair).__name__}, but must be a pair (sum, count), so that "
                "it can be summed over micro-batches and ranks before it is divided."
            )
        for number in pair:
            if isinstance(number, Tensor) and number.numel() != 1:
                raise HookError(
                    f"the loss hook's metric {name!r} holds a tensor of shape {list(number.shape)}, but sum and count "
                    "must be one number each. Use .sum(), or give each element a name of its own."
                )
    return metrics
