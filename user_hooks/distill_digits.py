"""Distillation on handwritten digits: Hinton, Vinyals and Dean (2015), with a teacher that is fitted in closed form."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from runner import Loss
from user_hooks.digits import DigitNet, build_data, load_images

__all__ = ["build_data", "build_student", "build_teacher", "compute_loss"]


def build_student(*, width: int = 4) -> nn.Module:
    """A network of `width` channels, a multiple of 4."""
    return DigitNet(width)


def build_teacher(*, features: int = 1000, length: float = 2.5, ridge: float = 1e-2) -> nn.Module:
    """A ridge regression of the labels on random Fourier features: Rahimi and Recht (NIPS 2007).

    A teacher that was trained by a run of its own would read what `runner export` wrote of it here.

    Args:
        length: of the Gaussian kernel, as a distance between images.
        ridge: added to each eigenvalue of the features' Gram matrix.
    """
    teacher = FourierRegression(features, length)
    images, labels = load_images()["train"]
    with torch.no_grad():
        found = teacher.features(images)
        gram = found.T @ found + ridge * torch.eye(features)
        # Logits a few units apart: what softmax makes of 0 and 1 alone says hardly anything.
        teacher.head.weight.copy_(8 * torch.linalg.solve(gram, found.T @ F.one_hot(labels, 10).float()).T)
    return teacher


def compute_loss(
    student: nn.Module, teacher: nn.Module, batch: tuple[Tensor, Tensor], *, temperature: float = 2.0, hard: float = 0.3
) -> Loss:
    """The student's cross-entropy with what the teacher says, and with the labels.

    Args:
        temperature: divides all logits in the first of the two.
        hard: the weight of the second, between 0 and 1.
    """
    images, labels = batch
    logits = student(images)
    said = F.softmax(teacher(images) / temperature, dim=1)
    soft = F.cross_entropy(logits / temperature, said, reduction="sum") * temperature**2
    total = (1 - hard) * soft + hard * F.cross_entropy(logits, labels, reduction="sum")
    preds = logits.argmax(dim=1)
    metrics: Mapping[str, Any] = {
        "accuracy": ((preds == labels).sum(), len(labels)),
        "teacher_accuracy": ((said.argmax(dim=1) == labels).sum(), len(labels)),
    }
    return Loss(total, len(labels), metrics, outputs={"preds": preds, "target": labels})


class FourierRegression(nn.Module):
    """Random features of images, and a linear layer."""

    def __init__(self, features: int, length: float) -> None:
        super().__init__()
        self.register_buffer("frequencies", torch.randn(64, features) / length)
        self.register_buffer("phases", torch.rand(features) * 2 * torch.pi)
        self.head = nn.Linear(features, 10, bias=False)

    def features(self, images: Tensor) -> Tensor:
        """Map images [n, 1, 8, 8] to features [n, features]."""
        return (images.flatten(1) @ self.frequencies + self.phases).cos()

    def forward(self, images: Tensor) -> Tensor:
        """Map images [n, 1, 8, 8] to logits [n, 10]."""
        return self.head(self.features(images))
