"""Tensors as bytes in host memory."""

from collections.abc import Mapping

import torch
from torch import Tensor

from runner.storage.format import ITEM_BYTES

DTYPES: Mapping[str, torch.dtype] = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        torch.float64,
        torch.float32,
        torch.float16,
        torch.bfloat16,
        torch.float8_e4m3fn,
        torch.float8_e4m3fnuz,
        torch.float8_e5m2,
        torch.float8_e5m2fnuz,
        torch.complex64,
        torch.int64,
        torch.int32,
        torch.int16,
        torch.int8,
        torch.uint64,
        torch.uint32,
        torch.uint16,
        torch.uint8,
        torch.bool,
    )
}
assert {name: dtype.itemsize for name, dtype in DTYPES.items()} == ITEM_BYTES


def dtype_name(dtype: torch.dtype) -> str:
    """The name of a dtype without its module: bfloat16."""
    return str(dtype).removeprefix("torch.")


def is_contiguous_on_host(tensor: Tensor) -> bool:
    """Whether `view_bytes` can view the tensor: contiguous, in host memory, no lazy conjugate or negative."""
    return tensor.device.type == "cpu" and tensor.is_contiguous() and not tensor.is_conj() and not tensor.is_neg()


def on_host(tensor: Tensor) -> Tensor:
    """The tensor itself if it is contiguous on the host, otherwise a copy that is."""
    tensor = tensor.detach()
    return tensor if is_contiguous_on_host(tensor) else tensor.cpu().resolve_conj().resolve_neg().contiguous()


def view_bytes(tensor: Tensor) -> memoryview:
    """A writable view of a tensor that is contiguous on the host. The view keeps the tensor's storage alive."""
    return tensor.detach().reshape(-1).view(torch.uint8).numpy().data
