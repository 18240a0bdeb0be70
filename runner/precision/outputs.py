"""What a model returns, widened to float32 on its way to the loss hook."""

from collections.abc import Mapping
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
    return widen(output)


def widen(value: Any) -> Any:
    """Tensors in it as float32; what is neither a tensor nor a plain container of them stays as it is."""
    if isinstance(value, Tensor):
        return value.float() if value.dtype in NARROW else value
    if isinstance(value, Mapping):
        wide = {key: widen(item) for key, item in value.items()}
        return wide if type(value) is dict else type(value)(**wide)
    if isinstance(value, tuple) and type(value) is not tuple:  # a named one
        return type(value)(*map(widen, value))
    if isinstance(value, tuple | list):
        return type(value)(map(widen, value))
    return value
