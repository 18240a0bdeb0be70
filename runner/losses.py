"""Ready-made loss hooks for models that return their own loss, as those of transformers do when they are given labels.

    loss: {_target_: runner.losses.own_causal_loss}

Such a model returns a mean. The gradient of a step divides the sum over all micro-batches once by the global count, so
the hook must say over how many things the mean was taken; the model does not. Choose by what it averages over:

    own_loss          the items of the batch: one label, one value, one pair each
    own_token_loss    every label but the ignored ones: masked language models, token classification, sequences to
                      sequences
    own_causal_loss   every label but the ignored ones and the first of each row, which nothing predicts: causal
                      language models, whose labels are the input tokens and which shift them inside

The batch is a mapping of the model's keyword arguments. A term that the model adds to its mean (a balancing loss of a
mixture of experts) is weighed as the mean is. The totals are exact up to the rounding of one multiplication.
"""

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn import Module

from runner.errors import HookError
from runner.protocols import Loss

__all__ = ["own_causal_loss", "own_loss", "own_token_loss"]

IGNORED = -100  # torch.nn.functional.cross_entropy's ignore_index, which transformers leaves as it is


@runtime_checkable
class HasLoss(Protocol):
    """An output with a loss in it that is not a mapping."""

    loss: Tensor | None


def own_loss(model: Module, batch: Mapping[str, Any]) -> Tensor:
    """`model(**batch)` and its loss, a mean over the items of the batch.

    Raises:
        HookError: the batch is no mapping, or the model returns no loss.
    """
    return _loss_of(model, batch)


def own_token_loss(model: Module, batch: Mapping[str, Any], *, ignored: int = IGNORED) -> Loss:
    """`model(**batch)` and its loss, a mean over all `labels` that are not `ignored`.

    Raises:
        HookError: the batch is no mapping or has no labels, or the model returns no loss.
    """
    labels = _labels(batch)
    return _total(_loss_of(model, batch), labels != ignored)


def own_causal_loss(model: Module, batch: Mapping[str, Any], *, ignored: int = IGNORED) -> Loss:
    """`model(**batch)` and its loss, a mean over all `labels` [rows, tokens] from the second on that are not `ignored`.

    Raises:
        HookError: the batch is no mapping or has no labels, or the model returns no loss.
    """
    labels = _labels(batch)
    return _total(_loss_of(model, batch), labels[..., 1:] != ignored)


def _total(mean: Tensor, counted: Tensor) -> Loss:
    """The sum that a mean was taken of. Where nothing counts, the mean is 0 / 0 and the sum is 0."""
    count = counted.sum()
    return Loss(torch.where(count > 0, mean, 0.0) * count, count)


def _loss_of(model: Module, batch: Mapping[str, Any]) -> Tensor:
    if not isinstance(batch, Mapping):
        raise HookError(
            f"the batch is a {type(batch).__name__}, but a model that returns its own loss is called as "
            "model(**batch). Let the data hook's collate return a dict of the model's keyword arguments."
        )
    output = model(**batch)
    loss = output.get("loss") if isinstance(output, Mapping) else output.loss if isinstance(output, HasLoss) else None
    if not isinstance(loss, Tensor):
        raise HookError(
            f"{type(model).__name__} returned a {type(output).__name__} without a loss for a batch of "
            f"{', '.join(batch)}. Give it what it computes one from (transformers: labels), or write a loss hook."
        )
    return loss


def _labels(batch: Mapping[str, Any]) -> Tensor:
    labels = batch.get("labels") if isinstance(batch, Mapping) else None
    if not isinstance(labels, Tensor):
        there = ", ".join(batch) if isinstance(batch, Mapping) else f"a {type(batch).__name__}"
        raise HookError(
            f"the batch ({there}) has no tensor 'labels', by which the loss is counted. Let the data hook's collate "
            "return a dict with labels in it."
        )
    return labels
