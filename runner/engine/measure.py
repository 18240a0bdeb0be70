"""From tensors on the devices to numbers: the only place where the host waits for them."""

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


@final
class LossMeans:
    """The meter that is always there: the means of the loss, and of each (sum, count) that the loss hook returns."""

    def __init__(self, *, on_device: bool) -> None:
        self._means = RunningMeans(on_device=on_device)

    def update(self, loss: MicroBatchLoss) -> None:
        """Add the micro-batch to the sums.

        Raises:
            HookError: a metric is not a pair of numbers, or takes the name of the loss.
        """
        self._means.update(LOSS, loss.value, loss.count, weight=loss.weight)
        for name, (total, count) in _checked(loss.metrics).items():
            self._means.update(name, total, count)

    def merge(self, world: World) -> None:
        """Add the sums of all ranks. Collective, on the host."""
        self._means.merge(world)

    def compute(self) -> dict[str, float]:
        """The loss under the name `loss`, and the hook's metrics under theirs."""
        return self._means.compute()


def step_values(loss: StepLoss, update: Update, *, rates: Mapping[str, float], world: World) -> dict[str, float]:
    """What is logged of one optimizer step: loss, gradient norm, rate, the hook's own metrics, the strategy's record.

    The loss is that of the whole step, over all items of all ranks. Collective.

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
        losses: added up as they come; none is kept.
        on_device: as `RunningMeans` takes it.
    """
    meter = LossMeans(on_device=on_device)
    for loss in losses:
        meter.update(loss)
    meter.merge(world)
    return meter.compute()


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
