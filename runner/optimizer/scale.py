"""The learning rate for another number of items a step than the one it was found for: a choice, never made silently."""

import math
from enum import Enum


class ScaleLR(Enum):
    """How the rate follows batch.items."""

    NONE = "none"
    """Not at all."""
    LINEAR = "linear"
    """In proportion: Goyal et al. (2017), for stochastic gradient descent."""
    SQRT = "sqrt"
    """As its square root: Krizhevsky (2014); Malladi et al. (NeurIPS 2022) for Adam."""


def check_scale(scale_lr: ScaleLR, base_items: int | None) -> None:
    """Own-field rule of every optimizer part.

    Raises:
        ValueError: the rate is to follow a number that is not said.
    """
    if base_items is not None and base_items < 1:
        raise ValueError(f"base_items={base_items} must be at least 1: the batch.items that lr was found for.")
    if scale_lr is not ScaleLR.NONE and base_items is None:
        raise ValueError(
            f"base_items=null, but scale_lr={scale_lr.value} needs it: the batch.items that lr was found for."
        )


def scaled(lr: float, scale_lr: ScaleLR, *, base_items: int | None, items: int) -> float:
    """The rate for steps of so many items."""
    if scale_lr is ScaleLR.NONE or base_items is None:
        return lr
    ratio = items / base_items
    return lr * (ratio if scale_lr is ScaleLR.LINEAR else math.sqrt(ratio))
