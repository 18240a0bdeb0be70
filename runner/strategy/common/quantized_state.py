"""Optimizer state that consists of several tensors: of torchao's 8-bit and 4-bit optimizers, codes and their scales.

A checkpoint holds these tensors under names of their own: exp_avg.codes, exp_avg.scale. They are read in place, so the
optimizer must have made its state before.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from runner.errors import CheckpointError
from runner.model.local_part import local_part

SEPARATOR = "."
"""Between the optimizer's own key and the name of a part; torch's and other optimizers' keys are identifiers."""


def parts_of(name: str, key: str, value: Tensor) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a state, by their keys in a checkpoint; a plain tensor under the state's own key.

    Args:
        name: the parameter's.
        key: the optimizer's own.

    Raises:
        CheckpointError: the state belongs to a part of a parameter: its blocks are none of the whole parameter.
    """
    local: Any = local_part(value)
    is_whole = local is value
    if not is_traceable_wrapper_subclass(local):
        yield key, value
        return
    if not is_whole:
        raise CheckpointError(
            f"optimizer.{name}.{key} is a {type(local).__name__} of this rank's part of the parameter, whose blocks "
            "are not those of the whole. Use this optimizer with strategy=single or ddp, or another one."
        )
    attributes, _ = local.__tensor_flatten__()
    for attribute in attributes:
        yield f"{key}{SEPARATOR}{attribute}", getattr(local, attribute)


def is_part(key: str) -> bool:
    """Whether this is the key of a part."""
    return SEPARATOR in key


def live_part(optimizer: Optimizer, parameter: Tensor, name: str, key: str) -> tuple[str, Tensor, Tensor]:
    """The optimizer's key of a state of which a checkpoint has this part, that state, and the part itself.

    Raises:
        CheckpointError: this optimizer has no such state.
    """
    own, _, attribute = key.partition(SEPARATOR)
    value = optimizer.state.get(parameter, {}).get(own)
    part = getattr(value, attribute, None)
    if not isinstance(part, Tensor):
        raise CheckpointError(
            f"optimizer.{name}.{own} is quantized in the checkpoint, and {type(optimizer).__name__} keeps none such. "
            "Resume with the optimizer that wrote it."
        )
    return own, value, part


def make_state(optimizer: Optimizer) -> None:
    """Let an optimizer make its state by a step with gradients of zero. Whoever calls this loads state and weights."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = None


def kept(now: Any, value: Any) -> Any:
    """A setting to load, as a tensor where the optimizer keeps it as one: torchao's, the learning rate."""
    return torch.full_like(now, value) if isinstance(now, Tensor) else value
