"""Upper and lower halves of handwritten digits, encoded alike if they belong together: a contrastive loss.

Radford et al. (ICML 2021), with halves of an image in place of image and text. Each item is compared with all others of
the step, on whichever rank they are.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from runner import Collectives, Data, Loss
from user_hooks import digits

PIXELS = 32  # of half an image of 8×8


def build_model(*, width: int = 256, features: int = 64) -> nn.Module:
    """Build two encoders, from half an image [n, 32] to a direction [n, features]."""
    return Halves(width=width, features=features)


def build_data() -> Data:
    """Return the images of the recipe `digits`, with the same split."""
    return digits.build_data()


def compute_loss(
    model: nn.Module, batch: tuple[Tensor, Tensor], world: Collectives, *, temperature: float = 0.1
) -> Loss:
    """Return the summed cross-entropy of finding each half's partner among all items of the step.

    Every rank sums over its own items, and compares them with those of all ranks. As a metric, how many of the lower
    halves are found.
    """
    images, _ = batch
    upper, lower = model(images)
    (uppers, lowers), own = world.gather_with_grad((upper, lower))
    partner = torch.arange(own.start, own.stop, device=images.device)
    to_lower = upper @ lowers.T / temperature  # [own items, items of all ranks]
    to_upper = lower @ uppers.T / temperature
    both = [F.cross_entropy(scores, partner, reduction="sum") for scores in (to_lower, to_upper)]
    found = (to_lower.argmax(dim=1) == partner).sum()
    return Loss(sum(both) / 2, len(images), {"accuracy": (found, len(images))})


class Halves(nn.Module):
    """An encoder for each half of an image."""

    def __init__(self, *, width: int, features: int) -> None:
        super().__init__()
        self.upper, self.lower = encoder(width, features), encoder(width, features)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Map images [n, 1, 8, 8] to the directions [n, features] of their halves."""
        upper, lower = images.flatten(1).split(PIXELS, dim=1)
        return F.normalize(self.upper(upper), dim=1), F.normalize(self.lower(lower), dim=1)


def encoder(width: int, features: int) -> nn.Module:
    """Return a perceptron with two hidden layers."""
    return nn.Sequential(
        nn.Linear(PIXELS, width), nn.GELU(), nn.Linear(width, width), nn.GELU(), nn.Linear(width, features)
    )
