"""Casts the tensors that a model receives and returns, inside nested containers too."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

HALF_DTYPES = (torch.bfloat16, torch.float16)


def cast_outputs_to_float32(model: Module) -> None:
    """Make the model return float32 tensors wherever it would return bfloat16 or float16 ones.

    With eight bits of mantissa, a metric summed over thousands of items would lose the differences that it measures.
    """
    model.register_forward_hook(_cast_output)


def _cast_output(_model: Module, _args: Any, output: Any) -> Any:
    if type(output) is Tensor and output.dtype in HALF_DTYPES:
        return output.float()
    return to_float32(output)


def cast_inputs_to_bfloat16(model: Module) -> None:
    """Cast the floating-point tensors that the model receives to bfloat16, on every call."""
    model.register_forward_pre_hook(_cast_inputs, with_kwargs=True)


def _cast_inputs(_model: Module, args: Any, kwargs: Any) -> Any:
    return cast_floating(args, torch.bfloat16), cast_floating(kwargs, torch.bfloat16)


def to_float32(value: Any) -> Any:
    """Cast the bfloat16 and float16 tensors in a nested container to float32."""
    return _map_tensors(value, lambda tensor: tensor.float() if tensor.dtype in HALF_DTYPES else tensor)


def cast_floating(value: Any, dtype: torch.dtype) -> Any:
    """Cast the floating-point tensors in a nested container to `dtype`; integers and booleans stay as they are."""
    return _map_tensors(value, lambda tensor: tensor.to(dtype) if tensor.is_floating_point() else tensor)


def _map_tensors(value: Any, fn: Callable[[Tensor], Tensor]) -> Any:
    """Apply `fn` to every tensor in mappings, tuples and lists; other values stay as they are."""
    if isinstance(value, Tensor):
        return fn(value)
    map_inside = partial(_map_tensors, fn=fn)
    if isinstance(value, Mapping):
        mapped = {key: map_inside(item) for key, item in value.items()}
        return mapped if type(value) is dict else type(value)(**mapped)
    if isinstance(value, tuple) and type(value) is not tuple:  # a namedtuple
        return type(value)(*map(map_inside, value))
    if isinstance(value, tuple | list):
        return type(value)(map(map_inside, value))
    return value
