"""What a language model of bytes says next, byte by byte."""

import torch
from torch import Tensor
from torch.nn import Module


def predict(model: Module, windows: Tensor, *, num_bytes: int = 3) -> dict[str, Tensor]:
    """Return the first bytes of each window and the likeliest ones after them."""
    found = windows[:, :4]
    for _ in range(num_bytes):
        said = model(found)
        logits = said if isinstance(said, Tensor) else said[0]
        found = torch.cat([found, logits[:, -1:].argmax(-1)], dim=1)
    return {"found": found}
