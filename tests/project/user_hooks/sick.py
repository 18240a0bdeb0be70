"""A run with one item that makes nan or inf, so that tests know where a guard must point."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from user_hooks.points import Points

from runner import Data

SICK = 31
"""Index of that item; its first coordinate is the mark."""
MARK = 77.0


class Divide(nn.Module):
    """h / 0 for the marked item."""

    def forward(self, h: Tensor, x: Tensor) -> Tensor:
        return h / (x[:, :1] != MARK)


class Root(nn.Module):
    """sqrt(0) for the marked item: finite, but its gradient is not."""

    def forward(self, h: Tensor, x: Tensor) -> Tensor:
        return (h * (x[:, :1] != MARK)).abs().sqrt()


class RootOfLast(Root):
    """The same of the last number alone."""

    def forward(self, h: Tensor, x: Tensor) -> Tensor:
        return torch.cat([h[:, :-1], super().forward(h[:, -1:], x)], dim=1)


class Net(nn.Module):
    """Two layers with what makes one item sick between them."""

    def __init__(self, middle: nn.Module) -> None:
        super().__init__()
        self.first, self.middle, self.last = nn.Linear(2, 4), middle, nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        healthy = torch.where(x == MARK, 0.5, x)
        return self.last(self.middle(self.first(healthy), x))


def build_model(middle: str = "divide") -> nn.Module:
    return Net({"divide": Divide, "root": Root, "root_of_last": RootOfLast}[middle]())


def build_data(all_items: bool = False) -> Data:
    train = Points(50, 0)
    train.x[: 50 if all_items else 0, 0] = MARK
    train.x[SICK, 0] = MARK
    return Data(train=train)


def loss(model: nn.Module, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    x, y, _ = batch
    return F.cross_entropy(model(x), y)
