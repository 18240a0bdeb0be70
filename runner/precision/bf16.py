"""Mixed precision in bfloat16: float32 weights, forward under autocast."""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

from runner.errors import Fault
from runner.protocols import Dtypes, Hardware, Scaler

if TYPE_CHECKING:
    from torch.nn import Module

    from runner.config.run_spec import RunSpec


@final
@dataclass(frozen=True, kw_only=True)
class BF16:
    """Operations on autocast's list run in bfloat16; weights, gradients and optimizer state stay float32."""

    enabled: bool = True
    """Enable autocast; false = only what the hook itself casts is bfloat16."""
    cache: bool = True
    """Cache weight casts: cast a weight once per forward, not once per use."""
    float32_outputs: bool = True
    """Cast the model's outputs to float32 before the loss hook receives them."""

    def check(self, spec: "RunSpec") -> Iterable[Fault]:
        """Requires hardware with bfloat16."""
        import torch

        if not spec.hardware.has_dtype(torch.bfloat16):
            rule = "bf16 needs bfloat16, which this hardware does not support. Use precision=fp32."
            yield Fault(key="precision", message=rule)

    @property
    def dtypes(self) -> Dtypes:
        """float32 where values accumulate: an update may be far smaller than its weight, a sum loses digits."""
        import torch

        return Dtypes(param=torch.bfloat16, weight=torch.float32, reduce=torch.float32)

    def autocast(self, device_type: str) -> AbstractContextManager[Any]:
        """Returns a torch.autocast to bfloat16 that is re-entered for each forward."""
        import torch

        return torch.autocast(device_type, torch.bfloat16, enabled=self.enabled, cache_enabled=self.cache)

    def scaler(self) -> Scaler:
        """Returns the unit scaler: bfloat16 has the range of float32."""
        from runner.precision.scaling import UNIT

        return UNIT

    def convert(self, model: "Module", hardware: Hardware) -> None:
        """Casts the model's outputs, if asked to, and changes nothing else."""
        from runner.precision.casting import cast_outputs_to_float32

        if self.float32_outputs:
            cast_outputs_to_float32(model)

    def plan(self, build_model: "Callable[[], Module]") -> Iterable[str]:
        """Yields nothing: the precision is the same for every layer."""
        return ()
