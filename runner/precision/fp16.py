"""Weights in float32, the forward in float16 under autocast, the loss scaled so that small gradients survive."""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

import torch
from torch.nn import Module

from runner.errors import Fault
from runner.precision.outputs import return_float32
from runner.precision.scaling import UNIT, Growth, LossScaler
from runner.protocols import Dtypes, Hardware, Scaler

if TYPE_CHECKING:
    from runner.config.run_spec import RunSpec


@final
@dataclass(frozen=True, kw_only=True)
class FP16:
    """Mixed precision: what autocast lists runs in float16; weights, gradients and the optimizer stay float32.

    Micikevicius et al. (ICLR 2018).
    """

    enabled: bool = True
    """Let autocast work; false = only what the hook itself casts is float16."""
    cache: bool = True
    """Cast a weight once for each forward, not once for each use."""
    float32_outputs: bool = True
    """What the model returns reaches the loss hook as float32."""
    scale_loss: bool = True
    """Multiply losses before backward, gradients by the inverse after; steps whose gradient overflows are skipped."""
    init_scale: float = 65536.0
    """The scale at first. It is of the mean: what a total sums over is divided off beforehand."""
    growth_factor: float = 2.0
    """Multiplies the scale after `growth_interval` steps in range."""
    backoff_factor: float = 0.5
    """Multiplies the scale after a step that overflowed."""
    growth_interval: int = 2000
    """Optimizer steps in range, one after the other, before the scale grows."""
    min_scale: float = 0.001
    """A run whose scale would fall below this fails: its gradient is not finite at any scale."""

    def __post_init__(self) -> None:
        if not self.min_scale > 0:
            raise ValueError(f"min_scale={self.min_scale} must be positive.")
        if not self.init_scale >= self.min_scale:
            raise ValueError(f"init_scale={self.init_scale} must be at least min_scale={self.min_scale}.")
        if not self.growth_factor > 1:
            raise ValueError(f"growth_factor={self.growth_factor} must be more than 1. Use 2.0.")
        if not 0 < self.backoff_factor < 1:
            raise ValueError(f"backoff_factor={self.backoff_factor} must lie between 0 and 1. Use 0.5.")
        if self.growth_interval < 1:
            raise ValueError(f"growth_interval={self.growth_interval} must be at least 1 step.")

    def check(self, spec: "RunSpec") -> Iterable[Fault]:
        """The hardware must have float16."""
        if not spec.hardware.has_dtype(torch.float16):
            rule = "fp16 was asked for, but this hardware has no float16. Use precision=fp32."
            yield Fault(key="precision", message=rule)

    @property
    def dtypes(self) -> Dtypes:
        """float32 where values accumulate: an update may be far smaller than its weight, a sum may overflow."""
        return Dtypes(param=torch.float16, weight=torch.float32, reduce=torch.float32)

    def autocast(self, device_type: str) -> AbstractContextManager[Any]:
        """torch.autocast to float16; one object, entered for each forward in turn."""
        return torch.autocast(device_type, torch.float16, enabled=self.enabled, cache_enabled=self.cache)

    def scaler(self) -> Scaler:
        """A loss scale that moves as these keys say."""
        if not self.scale_loss:
            return UNIT
        growth = Growth(
            init_scale=self.init_scale,
            factor=self.growth_factor,
            interval=self.growth_interval,
            backoff=self.backoff_factor,
            min_scale=self.min_scale,
        )
        return LossScaler(growth)

    def convert(self, model: Module, hardware: Hardware) -> None:
        """Only what the model returns is widened."""
        if self.float32_outputs:
            return_float32(model)

    def plan(self, build_model: Callable[[], Module]) -> Iterable[str]:
        """Nothing to choose: all layers are treated alike."""
        return ()
