"""A tower of equal blocks over the points: what is cut, recomputed and compiled block by block."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from runner import Loss


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.widen = nn.Linear(width, 3 * width)
        self.narrow = nn.Linear(3 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.narrow(F.gelu(self.widen(self.norm(x))))


class Tower(nn.Module):
    """`bottom` and `top` share their weight: a tied parameter. `seen` is a buffer that each forward in training moves.

    Five is no multiple of two: shards are uneven, and the top's bias of 2 leaves nothing for a third rank.
    """

    seen: Tensor

    def __init__(self, width: int, blocks: int, *, names_blocks: bool) -> None:
        super().__init__()
        if names_blocks:
            self._no_split_modules = ["Block"]
        self.bottom = nn.Linear(2, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(blocks))
        self.top = nn.Linear(2, width, bias=False)
        self.top.weight = self.bottom.weight
        self.bias = nn.Parameter(torch.zeros(2))
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        if self.training and torch.is_grad_enabled():
            self.seen += 1
        x = self.bottom(x)
        for block in self.blocks:
            x = block(x)
        return x @ self.top.weight + self.bias


def build_model(width: int = 5, blocks: int = 3, names_blocks: bool = True) -> nn.Module:
    return Tower(width, blocks, names_blocks=names_blocks)


class Ladder(Tower):
    """Its blocks are called rungs: another model with the same rest."""

    def __init__(self, width: int, blocks: int) -> None:
        super().__init__(width, 0, names_blocks=False)
        self.rungs = nn.ModuleList(Block(width) for _ in range(blocks))

    def forward(self, x: Tensor) -> Tensor:
        x = self.bottom(x)
        for rung in self.rungs:
            x = rung(x)
        return x @ self.top.weight + self.bias


def build_model_of_rungs(width: int = 5, blocks: int = 3) -> nn.Module:
    return Ladder(width, blocks)


def scores(model: nn.Module, batch: tuple[Tensor, Tensor, Tensor]) -> Loss:
    """The loss of points, with what the model says of each."""
    x, y, weight = batch
    found = model(x)
    total = (F.cross_entropy(found, y, reduction="none") * weight).sum()
    return Loss(total, weight.sum(), outputs={"scores": found})
