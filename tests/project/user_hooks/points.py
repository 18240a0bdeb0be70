"""Points in the plane, each with a weight of its own: a loss that counts what it sums."""

import itertools
import os
import random
import signal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from runner import Data, Loss

CALLS = itertools.count(1)
"""Of the losses that fail at one of them."""


class Points:
    """item: [2] float, class 0 or 1, and a weight 1 … 4 that stands for the tokens of a document."""

    def __init__(self, items: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.x = torch.randn(items, 2, generator=generator)
        self.y = (self.x[:, 0] * self.x[:, 1] > 0).long()
        self.weight = torch.randint(1, 5, (items,), generator=generator)

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        return self.x[index], self.y[index], self.weight[index]


def build_model(width: int = 8, dropout: float = 0.0) -> nn.Module:
    return nn.Sequential(nn.Linear(2, width), nn.Tanh(), nn.Dropout(dropout), nn.Linear(width, 2))


class LowRank(nn.Module):
    """A frozen layer and a trained update of rank 1, as Hu et al. (2021) add it.

    `seen` is a buffer that each forward in training changes.
    """

    seen: Tensor

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.down = nn.Linear(base.in_features, 1, bias=False)
        self.up = nn.Linear(1, base.out_features, bias=False)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        if self.training and torch.is_grad_enabled():
            self.seen += 1
        return self.base(x) + self.up(self.down(x))


def build_adapted_model(dropout: float = 0.0) -> nn.Module:
    return nn.Sequential(LowRank(nn.Linear(2, 8)), nn.Tanh(), nn.Dropout(dropout), LowRank(nn.Linear(8, 2)))


def build_by_value(dropout: float = 0.0) -> nn.Module:
    """As wide as a number that a tensor holds."""
    return build_model(int(torch.tensor(8).item()), dropout)


def build_data(items: int = 50) -> Data:
    return Data(train=Points(items, 0), eval=Points(17, 1))


def compute_loss(model: nn.Module, batch: tuple[Tensor, Tensor, Tensor]) -> Loss:
    """Weighted cross-entropy."""
    x, y, weight = batch
    scores = model(x)
    total = (F.cross_entropy(scores, y, reduction="none") * weight).sum()
    return Loss(total, weight.sum(), {"accuracy": ((scores.argmax(1) == y).sum(), len(y))})


def mean_loss(model: nn.Module, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """A plain mean over items."""
    x, y, _ = batch
    return F.cross_entropy(model(x), y)


def noisy_loss(model: nn.Module, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """Draws from every generator that a checkpoint must carry."""
    x, y, _ = batch
    return F.cross_entropy(model(x + 0.1 * torch.randn_like(x)), y) * (1 + 0.1 * random.random())


def infinite_loss(model: nn.Module, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """Divides by zero in every step."""
    return mean_loss(model, batch) / 0.0


def failing_loss(model: nn.Module, batch: tuple[Tensor, Tensor, Tensor], rank: str = "0", step: int = 3) -> Tensor:
    """Raises on one rank at one step."""
    call = next(CALLS)
    if os.environ.get("RANK", "0") == rank and call == step:
        raise ZeroDivisionError("the hook divides by zero")
    return mean_loss(model, batch)


def failing_once(model: nn.Module, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """SIGKILLs rank 1 in the sixth step of the first attempt."""
    call = next(CALLS)
    first = os.environ.get("TORCHELASTIC_RESTART_COUNT") == "0"
    if os.environ.get("RANK") == "1" and first and call == 7:  # five steps, an evaluation, and then
        os.kill(os.getpid(), signal.SIGKILL)
    return mean_loss(model, batch)


def killed_and_failing(model: nn.Module, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """As failing_once, and in the second attempt raises on rank 1."""
    if os.environ.get("TORCHELASTIC_RESTART_COUNT") == "0":
        return failing_once(model, batch)
    return failing_loss(model, batch, rank="1", step=6)
