"""Full precision: weights, activations and gradients in float32."""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

from runner.errors import Fault
from runner.protocols import Dtypes, Hardware, Scaler

if TYPE_CHECKING:
    from torch.nn import Module

    from runner.config.run_spec import RunSpec


@final
@dataclass(frozen=True, kw_only=True)
class FP32:
    """Weights, activations, gradients and reductions in float32."""

    def check(self, spec: "RunSpec") -> Iterable[Fault]:
        """Yields nothing: every device supports float32."""
        return ()

    @property
    def dtypes(self) -> Dtypes:
        """float32 throughout."""
        import torch

        return Dtypes(param=torch.float32, weight=torch.float32, reduce=torch.float32)

    def autocast(self, device_type: str) -> AbstractContextManager[Any]:
        """Returns a null context, in which nothing is cast."""
        return nullcontext()

    def scaler(self) -> Scaler:
        """Returns the unit scaler."""
        from runner.precision.scaling import UNIT

        return UNIT

    def convert(self, model: "Module", hardware: Hardware) -> None:
        """Does nothing: weights keep the dtype that the model hook gave them."""

    def plan(self, build_model: "Callable[[], Module]") -> Iterable[str]:
        """Yields nothing: the precision is the same for every layer."""
        return ()
