"""Everything in bfloat16, weights and what the optimizer keeps of them included."""

import logging
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

import torch
from torch.nn import Module

from runner.errors import Fault
from runner.precision.outputs import narrow, return_float32
from runner.precision.scaling import UNIT
from runner.protocols import Dtypes, Hardware, Scaler

if TYPE_CHECKING:
    from runner.config.run_spec import RunSpec

logger = logging.getLogger(__name__)


@final
@dataclass(frozen=True, kw_only=True)
class BF16Pure:
    """Weights, gradients and optimizer state in bfloat16: half the memory of everything, eight bits of everything."""

    enabled: bool = True
    """Let autocast give float32 to what needs it in the forward; false = everything as the weights are."""
    cache: bool = True
    """Cast a weight once for each forward, not once for each use."""
    float32_outputs: bool = True
    """What the model returns reaches the loss hook as float32."""

    def check(self, spec: "RunSpec") -> Iterable[Fault]:
        """The hardware must have bfloat16."""
        if not spec.hardware.has_dtype(torch.bfloat16):
            rule = "bf16_pure was asked for, but this hardware has no bfloat16. Use precision=fp32."
            yield Fault(key="precision", message=rule)

    @property
    def dtypes(self) -> Dtypes:
        """bfloat16 weights lose updates below 1/256 of a weight. Sums over ranks are float32."""
        return Dtypes(param=torch.bfloat16, weight=torch.bfloat16, reduce=torch.float32)

    def autocast(self, device_type: str) -> AbstractContextManager[Any]:
        """torch.autocast to bfloat16; one object, entered for each forward in turn."""
        return torch.autocast(device_type, torch.bfloat16, enabled=self.enabled, cache_enabled=self.cache)

    def scaler(self) -> Scaler:
        """None: bfloat16 has the range of float32."""
        return UNIT

    def convert(self, model: Module, hardware: Hardware) -> None:
        """Parameters and buffers to bfloat16; the model's floating inputs, too, whenever it is called."""
        logger.warning(
            "weights are bfloat16: an update below 1/256 of a weight is lost. As a rule of thumb, for stable training "
            "with mixed precision all trainable parameters have to be float32: that is precision=bf16"
        )
        model.to(torch.bfloat16)
        model.register_forward_pre_hook(_narrowed, with_kwargs=True)
        if self.float32_outputs:
            return_float32(model)

    def plan(self, build_model: Callable[[], Module]) -> Iterable[str]:
        """Nothing to choose: all layers are treated alike."""
        return ()


def _narrowed(_model: Module, args: Any, kwargs: Any) -> Any:
    return narrow(args, torch.bfloat16), narrow(kwargs, torch.bfloat16)
