"""What goes into a model and what it returns, in another type."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

NARROW = (torch.bfloat16, torch.float16)


def return_float32(model: Module) -> None:
    """Let every call of the model return float32 where it would return a narrower type.

    Sums of metrics over thousands of items would lose in eight bits of mantissa what they are there to show.
    """
    model.register_forward_hook(_widened)


def _widened(_model: Module, _args: Any, output: Any) -> Any:
    return output.float() if type(output) is Tensor and output.dtype in NARROW else widen(output)


def widen(value: Any) -> Any:
    """Narrow tensors in it as float32."""
    return _each(value, lambda tensor: tensor.float() if tensor.dtype in NARROW else tensor)


def narrow(value: Any, dtype: torch.dtype) -> Any:
    """Floating tensors in it as `dtype`; whole numbers and truths stay."""
    return _each(value, lambda tensor: tensor.to(dtype) if tensor.is_floating_point() else tensor)


def _each(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """What is neither a tensor nor a plain container of them stays as it is."""
    if isinstance(value, Tensor):
        return change(value)
    inside = partial(_each, change=change)
    if isinstance(value, Mapping):
        changed = {key: inside(item) for key, item in value.items()}
        return changed if type(value) is dict else type(value)(**changed)
    if isinstance(value, tuple) and type(value) is not tuple:  # a named one
        return type(value)(*map(inside, value))
    if isinstance(value, tuple | list):
        return type(value)(map(inside, value))
    return value
