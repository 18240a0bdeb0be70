"""The rules by which a model can be divided into units, as a recipe names them."""

from collections.abc import Sequence
from enum import Enum


class Wrap(Enum):
    """Which modules become units; parameters outside all of them belong to the root."""

    AUTO = "auto"
    """The modules of `wrap_classes` if any are named, else of `_no_split_modules` if the model has it, else none."""
    CLASSES = "classes"
    """The modules of `wrap_classes`."""
    NO_SPLIT = "no_split"
    """The modules that the model names in `_no_split_modules`."""
    SIZE = "size"
    """From the leaves up, each module with at least `wrap_min_params` parameters that are in no unit yet."""
    NONE = "none"
    """The whole model is a single unit."""


def asks_for_classes(wrap: Wrap, classes: Sequence[str]) -> bool:
    """Whether a rule depends on the classes of the model's modules."""
    return wrap in (Wrap.CLASSES, Wrap.NO_SPLIT) or (wrap is Wrap.AUTO and bool(classes))
