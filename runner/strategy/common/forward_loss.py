"""The forward of one micro-batch: checks the loss hook's result and gives it its weight in the step."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, is_grad_enabled, where

from runner.errors import HookError
from runner.protocols import Loss, MicroBatch, MicroBatchLoss
from runner.protocols.hooks import NO_OUTPUTS

Outputs = Mapping[str, Tensor | Sequence[Any]]


def forward_loss(
    forward: Callable[[Any, int], Loss | Tensor], micro_batch: MicroBatch, *, takes_outputs: bool = False
) -> MicroBatchLoss:
    """Call the loss hook on a micro-batch.

    Args:
        takes_outputs: whether the hook's outputs are checked and returned; otherwise they are freed here.

    Raises:
        HookError: the result is not a loss, or an output does not have an entry for each item.
    """
    batch, items = micro_batch
    result = forward(batch, items)
    if isinstance(result, Loss):
        total, count, metrics, outputs = result
        _check_scalar(total, "Loss.total")
        if not items:
            return MicroBatchLoss(total, 0, 0, False)
        taken = _checked_outputs(outputs, items) if takes_outputs else NO_OUTPUTS
        return MicroBatchLoss(total, 1, count, False, metrics, taken)
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


def as_total(loss: MicroBatchLoss) -> MicroBatchLoss:
    """A mean over items as a total and its count, as if the hook had returned a Loss."""
    return loss._replace(value=loss.value * loss.weight, weight=1, is_mean=False) if loss.is_mean else loss


def outputs_in_evaluation(result: Loss | Tensor) -> Loss | Tensor:
    """The hook's result, in training without outputs: whoever looks for the tensors of a backward (DDP) finds `total`.

    Training is told by the gradient: under some strategies a module around the model stays in training mode.
    """
    in_training = is_grad_enabled()
    return (
        result._replace(outputs=NO_OUTPUTS) if in_training and isinstance(result, Loss) and result.outputs else result
    )


def _checked_outputs(outputs: Any, items: int) -> Outputs:
    """The hook's outputs, after checking that they have an entry for each item.

    Raises:
        HookError: they have not.
    """
    if not isinstance(outputs, Mapping):
        raise HookError(
            f"Loss.outputs that the loss hook returned is a {type(outputs).__name__}, but must be a mapping of names "
            "to tensors [items, ...] or lists: outputs={'logits': logits}."
        )
    for name, values in outputs.items():
        is_tensor = isinstance(values, Tensor)
        if not ((is_tensor and values.ndim) or isinstance(values, list | tuple)):
            kind = "a tensor without dimensions" if is_tensor else f"a {type(values).__name__}"
            raise HookError(
                f"the output {name!r} is {kind}, but must be a tensor [items, ...] or a list: one entry "
                "for each item of the micro-batch. A number for the whole micro-batch belongs into Loss.metrics."
            )
        if len(values) != items:
            shape = f"has the shape {list(values.shape)}" if is_tensor else f"has {len(values)} entries"
            raise HookError(
                f"the output {name!r} {shape}, but the micro-batch has {items} items. Return one entry for "
                "each item, in the order of the batch."
            )
    # The output of a layer that is split among ranks may be a subclass that waits for its sum at the first operation.
    # To send or to store it is none: without this copy, others would get what was there before the sum.
    return {
        name: values.clone() if isinstance(values, Tensor) and type(values) is not Tensor else values
        for name, values in outputs.items()
    }


def _check_scalar(value: Any, name: str) -> None:
    if not isinstance(value, Tensor) or value.ndim:
        kind = f"a tensor of shape {list(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
        raise HookError(
            f"{name} that the loss hook returned is {kind}, but must be a scalar tensor. "
            "Return runner.Loss(total, count), or the mean over the micro-batch's items."
        )
