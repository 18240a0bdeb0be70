"""The group `precision`."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, final

from runner.protocols.hardware import Hardware
from runner.protocols.part import Part
from runner.protocols.state import Stateful

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from torch.nn import Module


class Scaler(Stateful, Protocol):
    """Keeps gradients of a narrow type in its range: losses are multiplied before backward, gradients divided after.

    It is meant for the gradient of a mean: what a loss sums over is divided off first, roughly if need be.
    """

    scales: bool
    """Whether there is ever anything to undo; constant of the class."""

    @property
    def scale(self) -> float:
        """By what to multiply the losses of this step; the same on every rank."""
        ...

    def unscale(
        self, gradients: Sequence["Tensor"], factor: "Tensor | float", reduce_found_inf: Callable[["Tensor"], "Tensor"]
    ) -> "tuple[Tensor | float, bool]":
        """Undo the multiplication, and `factor` in the same pass. Waits for the device if there is anything to undo.

        Args:
            gradients: this rank's; multiplied in place.
            factor: what the gradients are to be multiplied by besides.
            reduce_found_inf: maps whether this rank found inf or nan (0 or 1) to whether any rank did.

        Returns:
            What is left of the factor, and whether all gradients of all ranks are finite.
        """
        ...

    def record(self) -> Mapping[str, float]:
        """What is logged of it."""
        ...


@final
@dataclass(frozen=True, kw_only=True)
class Dtypes:
    """The types in which a precision holds and exchanges numbers."""

    param: "torch.dtype"
    """Of the weights as the forward sees them under a sharding strategy."""
    weight: "torch.dtype"
    """Of the weights that the optimizer updates, and of the state that it keeps for them."""
    reduce: "torch.dtype"
    """Of gradients while a sharding strategy sums them over ranks."""


class Precision(Part, Protocol):
    """The types in which a model computes."""

    @property
    def dtypes(self) -> Dtypes:
        """The types of weights and of gradients on their way."""
        ...

    def autocast(self, device_type: str) -> AbstractContextManager[Any]:
        """A context, entered anew for each forward, in which the hook runs. May be entered many times in turn."""
        ...

    def scaler(self) -> Scaler:
        """A fresh one for a run."""
        ...

    def convert(self, model: "Module", hardware: Hardware) -> None:
        """Make of the model that the hook returned one of this precision, in place; names stay as they are."""
        ...

    def plan(self, build_model: Callable[[], "Module"]) -> Iterable[str]:
        """What `convert` will do to the model's layers, a line each. Whoever asks may build without values, on meta."""
        ...
