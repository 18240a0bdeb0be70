"""Ready-made loss hooks for models that compute their own loss, as transformers' models do when they receive labels.

    loss: {_target_: runner.losses.own_causal_loss}

Such a model returns a mean. The gradient of a step is the sum over all micro-batches, divided once by the global count,
so the hook must return the number of elements that the mean was taken over. Choose the hook by what the model averages:

    own_loss          the items of the batch: one label, value or pair per item
    own_token_loss    all labels except ignored ones: masked language models, token classification,
                      sequence-to-sequence models
    own_causal_loss   all labels except ignored ones and the first of each row, which has no prediction: causal
                      language models, whose labels are the input tokens and which shift them internally

The batch is a mapping of the model's keyword arguments. A term that the model adds to its mean (such as the balancing
loss of a mixture of experts) gets the same weight as the mean. Totals are exact up to the rounding of one
multiplication.
"""

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn import Module

from runner.errors import HookError
from runner.protocols import Loss

__all__ = ["own_causal_loss", "own_loss", "own_token_loss"]

IGNORED = -100  # default ignore_index of torch.nn.functional.cross_entropy, which transformers uses too


@runtime_checkable
class HasLoss(Protocol):
    """A model output that is not a mapping and has a `loss` attribute."""

    loss: Tensor | None


def own_loss(model: Module, batch: Mapping[str, Any]) -> Tensor:
    """Return the loss of `model(**batch)`, a mean over the items of the batch.

    Raises:
        HookError: the batch is not a mapping, or the model returns no loss.
    """
    return _loss_of(model, batch)


def own_token_loss(model: Module, batch: Mapping[str, Any], *, ignored: int = IGNORED) -> Loss:
    """Return the loss of `model(**batch)`, a mean over all `labels` that are not `ignored`, as total and count.

    Raises:
        HookError: the batch is not a mapping or has no labels, or the model returns no loss.
    """
    labels = _labels(batch)
    return _total(_loss_of(model, batch), labels != ignored)


def own_causal_loss(model: Module, batch: Mapping[str, Any], *, ignored: int = IGNORED) -> Loss:
    """Return the loss of `model(**batch)`, a mean over `labels[:, 1:]` that are not `ignored`, as total and count.

    Args:
        batch: with `labels` [rows, tokens].

    Raises:
        HookError: the batch is not a mapping or has no labels, or the model returns no loss.
    """
    labels = _labels(batch)
    return _total(_loss_of(model, batch), labels[..., 1:] != ignored)


def _total(mean: Tensor, counted: Tensor) -> Loss:
    """Multiply the mean by the number of counted elements; if there are none, the mean is nan and the total 0."""
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
            f"{', '.join(batch)}. Add what it computes its loss from (transformers: labels), or write a loss hook."
        )
    return loss


def _labels(batch: Mapping[str, Any]) -> Tensor:
    labels = batch.get("labels") if isinstance(batch, Mapping) else None
    if not isinstance(labels, Tensor):
        content = ", ".join(batch) if isinstance(batch, Mapping) else f"a {type(batch).__name__}"
        raise HookError(
            f"the batch ({content}) has no tensor 'labels', which gives the count of the loss. Let the data hook's "
            "collate return a dict that contains labels."
        )
    return labels
