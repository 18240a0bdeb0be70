"""Handwritten digits: a small convolutional network on scikit-learn's 1,797 images of 8×8 pixels."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from runner import Data, Loss
from runner.errors import DataError


def build_model(*, width: int = 32) -> nn.Module:
    """Build a network from images [n, 1, 8, 8] to logits [n, 10] with `width` channels, a multiple of 4."""
    return DigitNet(width)


def build_data() -> Data:
    """Load the images: four fifths for training, one fifth for evaluation, the same split in every run."""
    images = load_images()
    return Data(train=Digits(*images["train"]), eval=Digits(*images["eval"]), collate=identity)


def load_images() -> dict[str, tuple[Tensor, Tensor]]:
    """Images [n, 1, 8, 8] and labels [n] of both sets."""
    try:
        from sklearn.datasets import load_digits  # here, because `runner check` imports this file without it
    except ModuleNotFoundError as missing:
        raise DataError("The images come with scikit-learn: pip install 'hydra-runner[demo]'") from missing
    images, labels = (torch.from_numpy(array) for array in load_digits(return_X_y=True))
    images = images.float().view(-1, 1, 8, 8) / 16  # pixel values are 0 to 16
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    test, train = order.tensor_split([len(labels) // 5])
    return {"train": (images[train], labels[train]), "eval": (images[test], labels[test])}


def compute_loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Loss:
    """Return the summed cross-entropy of a batch, its accuracy as a metric, and the digit found in each image."""
    images, labels = batch
    logits = model(images)
    total = F.cross_entropy(logits, labels, reduction="sum")
    preds = logits.argmax(dim=1)
    metrics = {"accuracy": ((preds == labels).sum(), len(labels))}
    return Loss(total, len(labels), metrics, outputs={"preds": preds, "target": labels})


@dataclass(frozen=True)
class Digits:
    """An in-memory map-style dataset that returns a whole batch at once."""

    images: Tensor  # [n, 1, 8, 8], from 0 to 1
    labels: Tensor  # [n]

    @property
    def weights(self) -> Tensor:
        """For `order=weighted`: all ten digits equally often, however many images of each there are."""
        return 1 / self.labels.bincount()[self.labels]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.images[index], self.labels[index]

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        return self.images[indices], self.labels[indices]


def identity(batch: Any) -> Any:
    """Return the batch unchanged: `__getitems__` has collated it already."""
    return batch


class DigitNet(nn.Module):
    """Three convolutions, global average pooling and a linear layer.

    Uses GroupNorm instead of BatchNorm, whose output for an image depends on the other images of its micro-batch: the
    result would depend on the number of ranks.
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
        """Map images [n, 1, 8, 8] to logits [n, 10]."""
        return self.head(self.features(images).mean(dim=(2, 3)))


def convolution(channels_in: int, channels_out: int, *, stride: int) -> list[nn.Module]:
    """Return a 3×3 convolution with normalization and activation."""
    return [
        nn.Conv2d(channels_in, channels_out, kernel_size=3, stride=stride, padding=1, bias=False),
        nn.GroupNorm(4, channels_out),
        nn.GELU(),
    ]
