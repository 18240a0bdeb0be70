"""An MLP on random numbers: three hooks, and the same data for a hand-written loop."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from runner import Data

ITEMS = 4096


class Points:
    """Items of [32] floats and one of ten classes; a batch is read with one index operation."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.x = torch.randn(ITEMS, 32, generator=generator)
        self.y = torch.randint(0, 10, (ITEMS,), generator=generator)

    def __len__(self) -> int:
        return ITEMS

    def __getitems__(self, indices: list[int]) -> Any:
        return self.x[indices], self.y[indices]


def build_model(hidden: int = 64) -> nn.Module:
    """An MLP of two linear layers."""
    return nn.Sequential(nn.Linear(32, hidden), nn.ReLU(), nn.Linear(hidden, 10))


def build_tower(width: int = 1024, blocks: int = 10) -> nn.Module:
    """A model of blocks with 8 width² weights each: 84 million by default, a gigabyte with AdamW's state."""
    layers = [nn.Sequential(nn.Linear(width, 4 * width), nn.ReLU(), nn.Linear(4 * width, width)) for _ in range(blocks)]
    return nn.Sequential(nn.Linear(32, width), *layers, nn.Linear(width, 10))


def build_data() -> Data:
    """Return the batch unchanged: the dataset already reads whole batches."""
    return Data(train=Points(), collate=lambda batch: batch)


def compute_loss(model: nn.Module, batch: tuple[Tensor, Tensor], marker: str | None = None, call: int = 2) -> Tensor:
    """The mean over the micro-batch. Creates the file `marker` on this call: the second, after the first step."""
    if marker is not None:
        compute_loss.calls += 1  # type: ignore[attr-defined]
        if compute_loss.calls == call:  # type: ignore[attr-defined]
            Path(marker).touch()
    x, y = batch
    return F.cross_entropy(model(x), y)


compute_loss.calls = 0  # type: ignore[attr-defined]


@final
@dataclass(frozen=True, kw_only=True)
class CountsSteps:
    """A callback that counts steps."""

    def check(self, spec: Any) -> tuple[()]:
        """Works with everything."""
        return ()

    def build(self) -> "Count":
        """A listener that has seen no step."""
        return Count()


class Count:
    """How many steps there have been."""

    def __init__(self) -> None:
        self.steps = 0

    def after_step(self, run: Any) -> None:
        """Count one."""
        self.steps += 1
