"""Loss scaling (Micikevicius et al., ICLR 2018) with a dynamic scale that follows torch.amp.GradScaler.

The scale is a Python float on the host. The host must know whether a step was skipped before it advances the schedule,
so it synchronizes with the device once per step in any case.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from runner.errors import NonFiniteError
from runner.protocols.step import NO_VALUES

logger = logging.getLogger(__name__)


@final
class UnitScaler:
    """Does not scale: for dtypes with the range of float32."""

    scales = False

    @property
    def scale(self) -> float:
        """Always 1."""
        return 1.0

    def unscale(
        self, gradients: Sequence[Tensor], factor: Tensor | float, reduce_found_inf: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor | float, bool]:
        """Returns the factor unchanged, without synchronizing to check whether the gradients are finite."""
        return factor, True

    def record(self) -> Mapping[str, float]:
        """Logs nothing."""
        return NO_VALUES

    def state_dict(self) -> dict[str, Any]:
        """Has no state."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Ignores the state of a run that was scaled before."""


UNIT = UnitScaler()


@dataclass(frozen=True, kw_only=True)
class Growth:
    """How the scale changes over the steps."""

    init_scale: float
    factor: float
    """Multiplies the scale after `interval` consecutive steps without overflow."""
    interval: int
    backoff: float
    """Multiplies the scale after each step that overflowed."""
    min_scale: float
    """The run fails if the scale would fall below this."""


@final
class LossScaler:
    """A dynamic scale: grows while gradients stay finite; when one overflows, it shrinks and the step is skipped."""

    scales = True

    def __init__(self, growth: Growth) -> None:
        self._growth = growth
        self._scale = growth.init_scale
        self._steps_in_range = 0
        self._skipped = 0

    @property
    def scale(self) -> float:
        """The current scale; only `unscale` changes it."""
        return self._scale

    def unscale(
        self, gradients: Sequence[Tensor], factor: Tensor | float, reduce_found_inf: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor | float, bool]:
        """Checks for inf and nan and unscales in one pass, as torch.amp.GradScaler.unscale_ does.

        Raises:
            NonFiniteError: the gradients overflow although the scale cannot shrink any further.
        """
        found_inf = torch.zeros(1)
        for group in _group_by_device_and_dtype(gradients):
            inverse = torch.as_tensor(factor / self._scale, dtype=torch.float32, device=group[0].device)
            found_inf = found_inf.to(group[0].device)
            torch._amp_foreach_non_finite_check_and_unscale_(group, found_inf, inverse)
        finite = not reduce_found_inf(found_inf).item()
        self._update(finite)
        return 1.0, finite

    def record(self) -> Mapping[str, float]:
        """Logs the scale of the next step and the number of steps skipped since the run began."""
        return {"loss_scale": self._scale, "skipped_steps": self._skipped}

    def state_dict(self) -> dict[str, Any]:
        """Returns the scale and the counters of steps in range and of skipped steps."""
        return {"scale": self._scale, "steps_in_range": self._steps_in_range, "skipped": self._skipped}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continues from the state; an empty one, from a run without scaling, leaves the initial scale."""
        if state_dict:
            self._scale, self._skipped = state_dict["scale"], state_dict["skipped"]
            self._steps_in_range = state_dict["steps_in_range"]

    def _update(self, finite: bool) -> None:
        growth = self._growth
        if finite:
            self._steps_in_range += 1
            if self._steps_in_range == growth.interval:
                self._steps_in_range = 0
                grown = self._scale * growth.factor
                self._scale = grown if grown <= torch.finfo(torch.float32).max else self._scale
            return
        self._skipped += 1
        self._steps_in_range = 0
        before, self._scale = self._scale, self._scale * growth.backoff
        if self._scale < growth.min_scale:
            raise NonFiniteError(
                f"the gradient is not finite even at a loss scale of {before:g}, and precision.min_scale="
                f"{growth.min_scale:g} does not allow a smaller one. Look for a division by zero or a logarithm of "
                "zero in the loss, lower optimizer.lr, set clip.norm, or use precision=bf16 or fp32 for a wider range."
            )
        logger.warning("step skipped: a gradient overflowed at loss scale %g; the scale is now %g", before, self._scale)


def _group_by_device_and_dtype(tensors: Sequence[Tensor]) -> list[list[Tensor]]:
    """Group tensors for torch's foreach kernels, which accept a single device and dtype per call."""
    groups: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for tensor in tensors:
        groups.setdefault((tensor.device, tensor.dtype), []).append(tensor)
    return list(groups.values())
