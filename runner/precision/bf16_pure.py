"""Pure bfloat16: weights, gradients and optimizer state included."""

import logging
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

from runner.errors import Fault
from runner.protocols import Dtypes, Hardware, Scaler

if TYPE_CHECKING:
    from torch.nn import Module

    from runner.config.run_spec import RunSpec

logger = logging.getLogger(__name__)


@final
@dataclass(frozen=True, kw_only=True)
class BF16Pure:
    """Weights, gradients and optimizer state in bfloat16: half the memory, at eight bits of significand."""

    enabled: bool = True
    """Let autocast run the operations that need float32 in float32; false = everything runs in bfloat16."""
    cache: bool = True
    """Cache weight casts: cast a weight once per forward, not once per use."""
    float32_outputs: bool = True
    """Cast the model's outputs to float32 before the loss hook receives them."""

    def check(self, spec: "RunSpec") -> Iterable[Fault]:
        """Requires hardware with bfloat16."""
        import torch

        if not spec.hardware.has_dtype(torch.bfloat16):
            rule = "bf16_pure needs bfloat16, which this hardware does not support. Use precision=fp32."
            yield Fault(key="precision", message=rule)

    @property
    def dtypes(self) -> Dtypes:
        """bfloat16 weights lose updates below 1/256 of a weight. Sums over ranks are float32."""
        import torch

        return Dtypes(param=torch.bfloat16, weight=torch.bfloat16, reduce=torch.float32)

    def autocast(self, device_type: str) -> AbstractContextManager[Any]:
        """Returns a torch.autocast to bfloat16 that is re-entered for each forward."""
        import torch

        return torch.autocast(device_type, torch.bfloat16, enabled=self.enabled, cache_enabled=self.cache)

    def scaler(self) -> Scaler:
        """Returns the unit scaler: bfloat16 has the range of float32."""
        from runner.precision.scaling import UNIT

        return UNIT

    def convert(self, model: "Module", hardware: Hardware) -> None:
        """Casts parameters and buffers to bfloat16, and the model's floating-point inputs on every call."""
        import torch

        from runner.precision.casting import cast_inputs_to_bfloat16, cast_outputs_to_float32

        logger.warning(
            "weights are bfloat16: an update smaller than 1/256 of a weight is lost. As a rule of thumb, stable "
            "mixed-precision training needs float32 trainable parameters, as with precision=bf16"
        )
        model.to(torch.bfloat16)
        cast_inputs_to_bfloat16(model)
        if self.float32_outputs:
            cast_outputs_to_float32(model)

    def plan(self, build_model: "Callable[[], Module]") -> Iterable[str]:
        """Yields nothing: the precision is the same for every layer."""
        return ()
