"""A run whose items take 16 MiB each, several times over, in a process that is not given much more than it has."""

import os
import resource
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from user_hooks.points import Points

from runner import Data

NUMBERS = 4 << 20  # an item becomes so many numbers, 16 MiB


class Heavy(nn.Linear):
    """A layer with so many MiB of weights besides, which take part in each forward."""

    def __init__(self, mib: int) -> None:
        super().__init__(4, 1)
        self.heavy = nn.Parameter(torch.zeros(mib << 18))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.heavy.mean()


def build_model(mib: int = 0, dropout: float = 0.5) -> nn.Module:
    return nn.Sequential(nn.Linear(2, 4), nn.Dropout(dropout), Heavy(mib) if mib else nn.Linear(4, 1))


def build_data(room_mib: int = 0, room_of_rank_1_mib: int = 0, items: int = 48) -> Data:
    """Sets the limit: as much data as the process has, and so many MiB; 0 = none."""
    room = room_of_rank_1_mib if os.environ.get("RANK") == "1" and room_of_rank_1_mib else room_mib
    if room:
        data_kib = int(Path("/proc/self/status").read_text().split("VmData:")[1].split()[0])
        limit = (data_kib << 10) + (room << 20)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    return Data(train=Points(items, 0), eval=Points(items // 8, 1))


class Wide(torch.autograd.Function):
    """The mean square of `NUMBERS` copies of each item, which are allocated as if they were computed with.

    A limit counts what is allocated, and none of it is touched: a gigabyte of pages takes a second.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        wide = torch.empty(len(x), NUMBERS)
        _squared = torch.empty_like(wide)
        ctx.save_for_backward(x, wide)
        return (x**2).mean()

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Tensor:
        x, wide = ctx.saved_tensors
        _spread, _doubled, _gradient = (torch.empty_like(wide) for _ in range(3))
        return gradients[0] * 2 * x / x.numel()


def loss(model: nn.Module, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    x, _, _ = batch
    return Wide.apply(model(x))
