"""The forward of one micro-batch: checks the loss hook's result and gives it its weight in the step."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, where

from runner.errors import HookError
from runner.protocols import Loss, MicroBatch, MicroBatchLoss


def forward_loss(forward: Callable[[Any, int], Loss | Tensor], micro_batch: MicroBatch) -> MicroBatchLoss:
    """Call the loss hook on a micro-batch.

    Raises:
        HookError: the result is not a loss.
    """
    batch, items = micro_batch
    result = forward(batch, items)
    if isinstance(result, Loss):
        total, count, metrics = result
        _check_scalar(total, "Loss.total")
        return MicroBatchLoss(total, 1, count, False, metrics) if items else MicroBatchLoss(total, 0, 0, False)
    _check_scalar(result, "the loss")
    return MicroBatchLoss(result, items, items, True)


def check_has_gradient(loss: Tensor) -> None:
    """Raise HookError if the loss does not require a gradient."""
    if not loss.requires_grad:
        raise HookError(
            "the loss that the hook returned has no gradient. Compute it from the model's output, without .item(), "
            ".detach() or torch.no_grad()."
        )


def at_least_one(count: Tensor | int) -> Tensor | int:
    """The count, or 1 if it is 0: the gradient of a step that counts nothing is then 0, not 0 / 0."""
    return where(count == 0, 1, count) if isinstance(count, Tensor) else count or 1


def _check_scalar(value: Any, name: str) -> None:
    if not isinstance(value, Tensor) or value.ndim:
        kind = f"a tensor of shape {list(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
        raise HookError(
            f"{name} that the loss hook returned is {kind}, but must be a scalar tensor. "
            "Return runner.Loss(total, count), or the mean over the micro-batch's items."
        )
