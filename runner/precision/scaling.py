"""Loss scaling: Micikevicius et al. (ICLR 2018), with the dynamic scale of torch.amp.GradScaler.

The scale itself is a number on the host: a step must know whether it was skipped before the schedule moves, so the host
waits for the gradients either way, once a step.
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
    """Scales by one: what a type with the range of float32 needs."""

    scales = False

    @property
    def scale(self) -> float:
        """One."""
        return 1.0

    def unscale(
        self, gradients: Sequence[Tensor], factor: Tensor | float, found_anywhere: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor | float, bool]:
        """Nothing to undo; nobody waits to know whether the gradients are finite."""
        return factor, True

    def record(self) -> Mapping[str, float]:
        """Nothing."""
        return NO_VALUES

    def state_dict(self) -> dict[str, Any]:
        """None."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """A run that was scaled before goes on without."""


UNIT = UnitScaler()


@dataclass(frozen=True, kw_only=True)
class Growth:
    """How the scale moves."""

    init_scale: float
    factor: float
    """Multiplies it after so many steps in range,"""
    interval: int
    backoff: float
    """and this after each that was not."""
    min_scale: float
    """Below it, no scale is believed to help."""


@final
class LossScaler:
    """A scale that grows while gradients stay finite, and shrinks, at the price of a step, when one does not."""

    scales = True

    def __init__(self, growth: Growth) -> None:
        self._growth = growth
        self._scale = growth.init_scale
        self._steps_in_range = 0
        self._skipped = 0

    @property
    def scale(self) -> float:
        """Moved by `unscale` only."""
        return self._scale

    def unscale(
        self, gradients: Sequence[Tensor], factor: Tensor | float, found_anywhere: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor | float, bool]:
        """Check and multiply in one pass, as torch.amp.GradScaler.unscale_ does.

        Raises:
            NonFiniteError: the scale is as small as is allowed, and still too large.
        """
        found = torch.zeros(1)
        for group in _of_one_kind(gradients):
            inverse = torch.as_tensor(factor / self._scale, dtype=torch.float32, device=group[0].device)
            found = found.to(group[0].device)
            torch._amp_foreach_non_finite_check_and_unscale_(group, found, inverse)
        finite = not found_anywhere(found).item()
        self._move(finite)
        return 1.0, finite

    def record(self) -> Mapping[str, float]:
        """The scale of the next step, and the steps skipped since the run began."""
        return {"loss_scale": self._scale, "skipped_steps": self._skipped}

    def state_dict(self) -> dict[str, Any]:
        """The scale, and how it came about."""
        return {"scale": self._scale, "steps_in_range": self._steps_in_range, "skipped": self._skipped}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """A run that was not scaled before begins at the initial scale."""
        if state_dict:
            self._scale, self._skipped = state_dict["scale"], state_dict["skipped"]
            self._steps_in_range = state_dict["steps_in_range"]

    def _move(self, finite: bool) -> None:
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
                f"the gradient is not finite, even at a loss scale of {before:g}, and precision.min_scale="
                f"{growth.min_scale:g} allows no smaller one. Look for a division by zero or a logarithm of zero in "
                "the loss, lower optimizer.lr, set clip.norm, or use precision=bf16 or fp32, whose range is wider."
            )
        logger.warning("step skipped: a gradient overflowed at loss scale %g, which is now %g", before, self._scale)


def _of_one_kind(tensors: Sequence[Tensor]) -> list[list[Tensor]]:
    """By device and type: what one call may take."""
    groups: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for tensor in tensors:
        groups.setdefault((tensor.device, tensor.dtype), []).append(tensor)
    return list(groups.values())
