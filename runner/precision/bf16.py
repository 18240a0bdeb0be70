"""Weights in float32, the forward in bfloat16 under autocast."""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

import torch
from torch.nn import Module

from runner.errors import Fault
from runner.precision.outputs import return_float32
from runner.precision.scaling import UNIT
from runner.protocols import Dtypes, Hardware, Scaler

if TYPE_CHECKING:
    from runner.config.run_spec import RunSpec


@final
@dataclass(frozen=True, kw_only=True)
class BF16:
    """Mixed precision: what autocast lists runs in bfloat16; weights, gradients and the optimizer stay float32."""

    enabled: bool = True
    """Let autocast work; false = only what the hook itself casts is bfloat16."""
    cache: bool = True
    """Cast a weight once for each forward, not once for each use."""
    float32_outputs: bool = True
    """What the model returns reaches the loss hook as float32."""

    def check(self, spec: "RunSpec") -> Iterable[Fault]:
        """The hardware must have bfloat16."""
        if not spec.hardware.has_dtype(torch.bfloat16):
            rule = "bf16 was asked for, but this hardware has no bfloat16. Use precision=fp32."
            yield Fault(key="precision", message=rule)

    @property
    def dtypes(self) -> Dtypes:
        """float32 where values accumulate: an update may be far smaller than its weight, a sum loses digits."""
        return Dtypes(param=torch.bfloat16, weight=torch.float32, reduce=torch.float32)

    def autocast(self, device_type: str) -> AbstractContextManager[Any]:
        """torch.autocast to bfloat16; one object, entered for each forward in turn."""
        return torch.autocast(device_type, torch.bfloat16, enabled=self.enabled, cache_enabled=self.cache)

    def scaler(self) -> Scaler:
        """None: bfloat16 has the range of float32."""
        return UNIT

    def convert(self, model: Module, hardware: Hardware) -> None:
        """Only what the model returns is widened."""
        if self.float32_outputs:
            return_float32(model)

    def plan(self, build_model: Callable[[], Module]) -> Iterable[str]:
        """Nothing to choose: all layers are treated alike."""
        return ()
