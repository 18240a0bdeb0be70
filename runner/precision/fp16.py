"""Mixed precision in float16: float32 weights, forward under autocast, loss scaling against gradient underflow."""

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
class FP16:
    """Operations on autocast's list run in float16; weights, gradients and optimizer state stay float32.

    Micikevicius et al. (ICLR 2018).
    """

    enabled: bool = True
    """Enable autocast; false = only what the hook itself casts is float16."""
    cache: bool = True
    """Cache weight casts: cast a weight once per forward, not once per use."""
    float32_outputs: bool = True
    """Cast the model's outputs to float32 before the loss hook receives them."""
    scale_loss: bool = True
    """Scale losses before backward and unscale gradients after it; skip steps whose gradients overflow."""
    init_scale: float = 65536.0
    """Initial scale. It applies to the mean loss: a total is divided by its count before it is scaled."""
    growth_factor: float = 2.0
    """Factor by which the scale grows after `growth_interval` steps without overflow."""
    backoff_factor: float = 0.5
    """Factor by which the scale shrinks after a step that overflowed."""
    growth_interval: int = 2000
    """Consecutive optimizer steps without overflow after which the scale grows."""
    min_scale: float = 0.001
    """The run fails if the scale would fall below this: its gradient is not finite at any scale."""

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
        """Requires hardware with float16."""
        import torch

        if not spec.hardware.has_dtype(torch.float16):
            rule = "fp16 needs float16, which this hardware does not support. Use precision=fp32."
            yield Fault(key="precision", message=rule)

    @property
    def dtypes(self) -> Dtypes:
        """float32 where values accumulate: an update may be far smaller than its weight, a sum may overflow."""
        import torch

        return Dtypes(param=torch.float16, weight=torch.float32, reduce=torch.float32)

    def autocast(self, device_type: str) -> AbstractContextManager[Any]:
        """Returns a torch.autocast to float16 that is re-entered for each forward."""
        import torch

        return torch.autocast(device_type, torch.float16, enabled=self.enabled, cache_enabled=self.cache)

    def scaler(self) -> Scaler:
        """Returns a new dynamic loss scale, or the unit scaler if `scale_loss` is false."""
        from runner.precision.scaling import UNIT, Growth, LossScaler

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

    def convert(self, model: "Module", hardware: Hardware) -> None:
        """Casts the model's outputs, if asked to, and changes nothing else."""
        from runner.precision.casting import cast_outputs_to_float32

        if self.float32_outputs:
            cast_outputs_to_float32(model)

    def plan(self, build_model: "Callable[[], Module]") -> Iterable[str]:
        """Yields nothing: the precision is the same for every layer."""
        return ()
