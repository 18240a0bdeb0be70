"""A generative adversarial network on handwritten digits: Goodfellow et al. (NIPS 2014), with two losses in turns."""

from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from runner import Data, Loss
from user_hooks.digits import load_images

NOISE = 16
"""Numbers from which one image is generated."""


def build_generator(*, width: int = 128) -> nn.Module:
    """A network from noise [n, 16] to images [n, 64], from 0 to 1."""
    return nn.Sequential(
        nn.Linear(NOISE, width), nn.GELU(), nn.Linear(width, width), nn.GELU(), nn.Linear(width, 64), nn.Sigmoid()
    )


def build_critic(*, width: int = 128) -> nn.Module:
    """A network from images [n, 64] to how real each one looks [n, 1]."""
    return nn.Sequential(
        nn.Linear(64, width), nn.LeakyReLU(0.2), nn.Linear(width, width), nn.LeakyReLU(0.2), nn.Linear(width, 1)
    )


def build_data() -> Data:
    """The images, each many times, with other noise each time."""
    images = load_images()
    return Data(train=WithNoise(images["train"][0].flatten(1), 50), eval=WithNoise(images["eval"][0].flatten(1), 1))


def critic_loss(generator: nn.Module, critic: nn.Module, batch: tuple[Tensor, Tensor]) -> Loss:
    """How wrong the critic is about real and generated images."""
    real, noise = batch
    with torch.no_grad():
        generated = generator(noise)
    on_real, on_generated = critic(real), critic(generated)
    total = F.softplus(-on_real).sum() + F.softplus(on_generated).sum()
    right = (on_real > 0).sum() + (on_generated < 0).sum()
    return Loss(total, len(real), {"accuracy": (right, 2 * len(real))})


def generator_loss(generator: nn.Module, critic: nn.Module, batch: tuple[Tensor, Tensor]) -> Loss:
    """How well the critic tells generated images from real ones: the loss that does not saturate."""
    _, noise = batch
    return Loss(F.softplus(-critic(generator(noise))).sum(), len(noise))


def distance(generator: nn.Module, batch: tuple[Tensor, Tensor]) -> Loss:
    """How far generated images are from the nearest real one, as a squared distance. For evaluation only."""
    _, noise = batch
    generated = generator(noise)
    nearest = torch.cdist(generated, real_images().to(generated)).square().amin(dim=1)
    spread = generated.std(dim=0).mean() * len(noise)
    return Loss(nearest.sum(), len(noise), {"spread": (spread, len(noise))}, outputs={"image": generated})


@cache
def real_images() -> Tensor:
    """All images of the training set [n, 64]."""
    return load_images()["train"][0].flatten(1)


@dataclass(frozen=True)
class WithNoise:
    """Images with noise that belongs to the item, so that any number of ranks generates the same from it."""

    images: Tensor  # [n, 64]
    times: int

    def __len__(self) -> int:
        return len(self.images) * self.times

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        noise = torch.randn(NOISE, generator=torch.Generator().manual_seed(index))
        return self.images[index % len(self.images)], noise
