"""The group `precision`: the dtypes of weights, computation and communication, and loss scaling."""

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
    """Keeps gradients in the range of a narrow dtype: multiplies losses before backward, and divides gradients after.

    It is meant for the gradient of a mean: the sum of losses is first divided by its count, or by an estimate of it.
    """

    scales: bool
    """Whether losses are scaled at all; a constant of the class."""

    @property
    def scale(self) -> float:
        """The factor for the losses of this step; the same on every rank."""
        ...

    def unscale(
        self, gradients: Sequence["Tensor"], factor: "Tensor | float", reduce_found_inf: Callable[["Tensor"], "Tensor"]
    ) -> "tuple[Tensor | float, bool]":
        """Divide gradients by the scale and multiply them by `factor`, in one pass. Waits for the device if it scales.

        Args:
            gradients: of this rank; modified in place.
            factor: a further factor for the gradients.
            reduce_found_inf: maps whether this rank found inf or nan (0 or 1) to whether any rank did.

        Returns:
            The factor that remains to be applied, and whether all gradients of all ranks are finite.
        """
        ...

    def record(self) -> Mapping[str, float]:
        """Values to log, by name."""
        ...


@final
@dataclass(frozen=True, kw_only=True)
class Dtypes:
    """The dtypes in which a precision stores and exchanges tensors."""

    param: "torch.dtype"
    """Dtype of the weights in the forward under a sharding strategy."""
    weight: "torch.dtype"
    """Dtype of the weights that the optimizer updates, and of its state."""
    reduce: "torch.dtype"
    """Dtype in which a sharding strategy reduces gradients over ranks."""


class Precision(Part, Protocol):
    """The dtypes in which a model computes."""

    @property
    def dtypes(self) -> Dtypes:
        """The dtypes of weights and of gradient reduction."""
        ...

    def autocast(self, device_type: str) -> AbstractContextManager[Any]:
        """The context in which the loss hook runs. It is entered for each forward, so it must be reusable."""
        ...

    def scaler(self) -> Scaler:
        """Create a loss scaler for a run."""
        ...

    def convert(self, model: "Module", hardware: Hardware) -> None:
        """Convert the model hook's model to this precision, in place; names do not change."""
        ...

    def plan(self, build_model: Callable[[], "Module"]) -> Iterable[str]:
        """Describe what `convert` does to the model's layers, one line each. `build_model` may use the meta device."""
        ...
