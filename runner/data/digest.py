"""Items told apart by their bytes."""

import io
import pickle
from typing import Any

import torch
import xxhash


class _Pickler(pickle.Pickler):
    """Pickles tensors by their numbers, wherever they lie in memory."""

    def reducer_override(self, value: Any) -> Any:
        if type(value) is torch.Tensor and value.device.type == "cpu" and value.layout is torch.strided:
            plain = value.detach().contiguous().flatten().view(torch.uint8).numpy()
            return tuple, ((plain, value.dtype, value.shape),)
        return NotImplemented


def digest(items: list[Any]) -> str:
    """Tells items apart; empty if they cannot be told apart."""
    file = io.BytesIO()
    try:
        _Pickler(file, protocol=pickle.HIGHEST_PROTOCOL).dump(items)
    except (AttributeError, TypeError, pickle.PicklingError):  # what pickle says of functions, modules and the like
        return ""
    return xxhash.xxh3_64_hexdigest(file.getbuffer())
