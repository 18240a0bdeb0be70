"""Handwritten digits: a small convolutional network on scikit-learn's 1,797 real images of 8×8 pixels."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from runner import Data, Loss


def build_model(*, width: int = 32) -> nn.Module:
    """A network from images [n, 1, 8, 8] to logits [n, 10]; `width` is its channels, a multiple of 4."""
    return DigitNet(width)


def build_data() -> Data:
    """Four fifths of the images to train on, one fifth to test on: the same split in every run."""
    try:
        from sklearn.datasets import load_digits  # here: `runner check` reads this file and needs no images
    except ModuleNotFoundError as missing:
        raise ModuleNotFoundError("The digits are scikit-learn's: pip install scikit-learn") from missing
    images, labels = (torch.from_numpy(array) for array in load_digits(return_X_y=True))
    images = images.float().view(-1, 1, 8, 8) / 16  # scikit-learn's pixels count from 0 to 16
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    test, train = order.tensor_split([len(labels) // 5])
    return Data(train=Digits(images[train], labels[train]), eval=Digits(images[test], labels[test]), collate=as_is)


def compute_loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Loss:
    """Cross-entropy over the images of a batch, and how many of them are recognised."""
    images, labels = batch
    logits = model(images)
    total = F.cross_entropy(logits, labels, reduction="sum")
    correct = (logits.argmax(dim=1) == labels).sum()
    return Loss(total, len(labels), {"accuracy": (correct, len(labels))})


@dataclass(frozen=True)
class Digits:
    """A map-style dataset in memory that reads a whole batch at once."""

    images: Tensor  # [n, 1, 8, 8], from 0 to 1
    labels: Tensor  # [n]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.images[index], self.labels[index]

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        return self.images[indices], self.labels[indices]


def as_is(batch: Any) -> Any:
    """Collate nothing: `__getitems__` returns a batch already."""
    return batch


class DigitNet(nn.Module):
    """Three convolutions, the mean over pixels, a linear layer.

    GroupNorm instead of BatchNorm: what an image becomes must not depend on which images share its micro-batch,
    or else the number of ranks would change the mathematics.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *convolution(1, width, stride=1),  # [n, width, 8, 8]
            *convolution(width, width, stride=1),
            *convolution(width, 2 * width, stride=2),  # [n, 2·width, 4, 4]
        )
        self.head = nn.Linear(2 * width, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Images [n, 1, 8, 8] to logits [n, 10]."""
        return self.head(self.features(images).mean(dim=(2, 3)))


def convolution(channels_in: int, channels_out: int, *, stride: int) -> list[nn.Module]:
    """A 3×3 convolution, normalised, with its non-linearity."""
    return [
        nn.Conv2d(channels_in, channels_out, kernel_size=3, stride=stride, padding=1, bias=False),
        nn.GroupNorm(4, channels_out),
        nn.GELU(),
    ]
