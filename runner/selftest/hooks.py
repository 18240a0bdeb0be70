"""The hooks of the self-test's recipe: blocks with a tied weight, on points of unequal weight."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from runner import Data, Loss

WIDTH = 32  # a multiple of 16: also what float8 needs


class Block(nn.Module):
    """A residual block, the unit of sharding."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.widen = nn.Linear(WIDTH, 2 * WIDTH)
        self.narrow = nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """Map [n, WIDTH] to the same."""
        out: Tensor = x + self.narrow(F.gelu(self.widen(self.norm(x))))
        return out


class Tower(nn.Module):
    """Blocks between two projections that share a weight."""

    _no_split_modules = ("Block",)

    def __init__(self) -> None:
        super().__init__()
        self.bottom = nn.Linear(2, WIDTH)
        self.blocks = nn.Sequential(Block(), Block())
        self.top = nn.Linear(2, WIDTH, bias=False)
        self.top.weight = self.bottom.weight
        self.bias = nn.Parameter(torch.zeros(2))

    def forward(self, points: Tensor) -> Tensor:
        """Map points [n, 2] to scores [n, 2]."""
        out: Tensor = self.blocks(self.bottom(points)) @ self.top.weight + self.bias
        return out


def build_model() -> nn.Module:
    """Build the network."""
    return Tower()


def build_data() -> Data:
    """50 points on either side of two lines, each of which counts one to four times."""
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(50, 2, generator=generator)
    sides = (points[:, 0] * points[:, 1] > 0).long()
    weights = torch.randint(1, 5, (50,), generator=generator)
    return Data(train=list(zip(points, sides, weights, strict=True)))


def compute_loss(model: nn.Module, batch: tuple[Tensor, Tensor, Tensor]) -> Loss:
    """Weighted cross-entropy: micro-batches of equal size have unequal counts."""
    points, sides, weights = batch
    total = (F.cross_entropy(model(points), sides, reduction="none") * weights).sum()
    return Loss(total, weights.sum())
