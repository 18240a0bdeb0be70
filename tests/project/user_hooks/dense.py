"""Digits by linear layers alone, one of which is neither first nor last: what precision=fp8 converts."""

from torch import nn


def build_model(width: int = 128) -> nn.Module:
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(64, width),
        nn.GELU(),
        nn.Linear(width, width),
        nn.GELU(),
        nn.Linear(width, 10),
    )
