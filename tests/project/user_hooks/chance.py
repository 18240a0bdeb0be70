"""A loss that leaves in the working directory what was random on its rank."""

import json
import os
import random
from pathlib import Path

import numpy
import torch
from torch import Tensor, nn
from user_hooks.points import mean_loss


def loss(model: nn.Module, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    kept = Path(f"chance_{os.environ.get('RANK', '0')}.json")
    if not kept.exists():
        found = {
            "weights": [parameter.tolist() for parameter in model.parameters()],
            "mask": nn.functional.dropout(torch.ones(64)).tolist(),
            "python": random.random(),
            "numpy": numpy.random.random(),
            "workspace": os.environ.get("CUBLAS_WORKSPACE_CONFIG"),
        }
        kept.write_text(json.dumps(found))
    return mean_loss(model, batch)


def unordered_loss(model: nn.Module, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """Calls an operation that has no deterministic form anywhere."""
    torch.zeros(3).put_(torch.tensor([0]), torch.ones(1))
    return mean_loss(model, batch)
