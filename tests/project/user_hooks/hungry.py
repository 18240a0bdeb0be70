"""A run whose items take 16 MiB each, several times over, in a process that is not given much more than it has."""

import os
import resource
from pathlib import Path

from torch import Tensor, nn
from user_hooks.points import Points

from runner import Data

NUMBERS = 4 << 20  # an item becomes so many numbers, 16 MiB


def build_model() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 4), nn.Dropout(0.5), nn.Linear(4, 1))


def build_data(room_mib: int = 0, room_of_rank_1_mib: int = 0, items: int = 48) -> Data:
    """Sets the limit: as much as the process has mapped, and so many MiB; 0 = none."""
    room = room_of_rank_1_mib if os.environ.get("RANK") == "1" and room_of_rank_1_mib else room_mib
    if room:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + (room << 20)
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    return Data(train=Points(items, 0))


def loss(model: nn.Module, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    x, _, _ = batch
    wide = model(x).expand(-1, NUMBERS).contiguous()
    return (wide**2).mean()
