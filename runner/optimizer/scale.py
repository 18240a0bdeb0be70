"""Scale the learning rate to a batch.items other than the one it was tuned for. Only done on request."""

import math
from enum import Enum


class ScaleLR(Enum):
    """How the learning rate scales with batch.items."""

    NONE = "none"
    """It does not."""
    LINEAR = "linear"
    """Linearly: Goyal et al. (2017), for SGD."""
    SQRT = "sqrt"
    """With the square root: Krizhevsky (2014); Malladi et al. (NeurIPS 2022), for Adam."""


def check_scale(scale_lr: ScaleLR, base_items: int | None) -> None:
    """Validate the fields that all optimizer parts share.

    Raises:
        ValueError: base_items is out of range, or missing although `scale_lr` needs it.
    """
    if base_items is not None and base_items < 1:
        raise ValueError(f"base_items={base_items} must be at least 1: it is the batch.items that lr was tuned for.")
    if scale_lr is not ScaleLR.NONE and base_items is None:
        raise ValueError(
            f"base_items=null, but scale_lr={scale_lr.value} needs it: set it to the batch.items that lr was tuned for."
        )


def scaled(lr: float, scale_lr: ScaleLR, *, base_items: int | None, items: int) -> float:
    """Return the learning rate for a batch.items of `items`."""
    if scale_lr is ScaleLR.NONE or base_items is None:
        return lr
    ratio = items / base_items
    return lr * (ratio if scale_lr is ScaleLR.LINEAR else math.sqrt(ratio))
