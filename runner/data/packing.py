"""Items as bytes: for another process of this run, or to compare."""

import io
import pickle
from typing import Any

import numpy
import torch
import xxhash


class _Pickler(pickle.Pickler):
    """Pickles tensors by their bytes.

    Sent to another process one by one, each tensor would take a file descriptor of shared memory as long as it lives.
    """

    def reducer_override(self, value: Any) -> Any:
        if type(value) is torch.Tensor and value.device.type == "cpu" and value.layout is torch.strided:
            plain = value.detach().contiguous().flatten().view(torch.uint8).numpy()
            return _tensor, (plain, value.dtype, value.shape)
        return NotImplemented


def _tensor(plain: "numpy.ndarray[Any, Any]", dtype: torch.dtype, shape: torch.Size) -> torch.Tensor:
    return torch.from_numpy(plain).view(dtype).reshape(shape)


def digest(items: list[Any]) -> str:
    """Tells items apart; empty if they cannot be told apart."""
    try:
        return xxhash.xxh3_64_hexdigest(packed(items))
    except (AttributeError, TypeError, pickle.PicklingError):  # what pickle says of functions, modules and the like
        return ""


def packed(items: list[Any]) -> bytes:
    """Items as bytes, for another process of this run."""
    file = io.BytesIO()
    _Pickler(file, protocol=pickle.HIGHEST_PROTOCOL).dump(items)
    return file.getvalue()


def unpacked(data: bytes) -> list[Any]:
    """The items that `packed` got."""
    items: list[Any] = pickle.loads(data)
    return items
