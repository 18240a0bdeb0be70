"""The gradients of a step inside a DeepSpeed optimizer, between its last backward and its step."""

from collections.abc import Callable
from typing import Any, final

import torch
from torch import Tensor

from runner.protocols import Clip, World
from runner.strategy.common.gradients import all_finite


@final
class Gradients:
    """This rank's gradients, averaged over ranks; divides and clips them."""

    def __init__(self, zero: Any, clip: Clip, world: World) -> None:
        self._zero = zero
        self._clip = clip
        self._world = world
        self._has_gradients = False  # whether a backward has run since the last step
        self._overwritten: list[Tensor] = []
        self._owned: Callable[[], list[Tensor]]
        self._stored: Callable[[], list[Tensor]]
        if "fp32_groups_gradients_flat" in vars(zero):  # stage 1 in bfloat16: every rank stores all of them
            self._owned = lambda: zero.fp32_groups_gradient_flat_partition
            self._stored = lambda: zero.fp32_groups_gradients_flat
            self._multiply = _in_place(zero)
        else:
            self._owned = self._stored = lambda: [
                tensor for group in zero.averaged_gradients.values() for tensor in group
            ]
            self._multiply = _by_loss_scale(zero)
        # An offloaded optimizer keeps gradients on the host; only the norm of each is available here.
        self._is_offloaded = any(vars(zero).get(name) for name in ("cpu_offload", "offload_optimizer"))

    def _norms(self) -> list[Tensor]:
        return list(self._zero.norm_for_param_grads.values())

    def begin(self) -> None:
        """Call before the first backward of a step: the factor on the losses is reset to 1."""
        self._has_gradients = True
        self._multiply(1.0)

    def finite(self) -> bool:
        """Whether all gradients of all ranks are finite. Collective; waits for the device."""
        tensors = self._norms() if self._is_offloaded else self._owned()
        return not self._world.any(not bool(all_finite(tensors)))

    def force_skip(self) -> bool:
        """Overwrite the gradients with nan, so that DeepSpeed skips the step.

        Returns:
            Whether there are gradients, that is whether a backward has run since the last step.
        """
        if not self._has_gradients:
            return False
        self._multiply(1.0)
        self._overwritten = self._norms() if self._is_offloaded else self._stored()
        for tensor in self._overwritten:
            tensor.fill_(torch.nan)
        return True

    def scale_and_clip(self, factor: Tensor | float) -> Tensor | None:
        """Have DeepSpeed's step multiply gradients by a factor, and clip each element here, which DeepSpeed cannot.

        Returns:
            The norm before clipping if elements are clipped, since DeepSpeed measures it afterwards. Collective.
        """
        self._has_gradients = False
        norm = None
        if self._clip.value is not None:
            squares = [tensor.float().square().sum() for tensor in self._owned()]
            norm = self._world.sum(torch.stack(squares).sum()).sqrt() * factor
            # A non-finite gradient must stay so, for DeepSpeed to find it instead of a clipped infinity.
            bound = torch.where(norm.isfinite(), self._clip.value / factor, torch.inf)
            for tensor in self._stored():
                tensor.clamp_(-bound, bound)
        self._multiply(factor)
        return norm

    def clear_after_skip(self) -> None:
        """Clear the gradients after DeepSpeed has skipped a step.

        With an offloaded optimizer, DeepSpeed 0.19.8 keeps non-finite gradients and would add the next ones to them.
        Stage 3 writes the next gradients into the same buffers, but never into their padding, which must not stay NaN.
        """
        self._has_gradients = False
        for tensor in self._overwritten:
            tensor.zero_()
        self._overwritten = []
        if "averaged_gradients" in vars(self._zero):
            for group in self._zero.averaged_gradients:
                self._zero.averaged_gradients[group] = None


def _by_loss_scale(zero: Any) -> Callable[[Tensor | float], None]:
    """Multiply through the inverse of the loss scale, which DeepSpeed applies together with clipping.

    `override_loss_scale` would also work, but compares and prints the scale, for which the host must wait: it is a
    tensor where the count depends on data.
    """
    from deepspeed.runtime.fp16.loss_scaler import LossScaler

    zero.custom_loss_scaler = True
    zero.loss_scaler = LossScaler(scale=1.0)  # static: the precision adjusts its own

    def multiply(factor: Tensor | float) -> None:
        zero.external_loss_scale = 1.0 / factor

    return multiply


def _in_place(zero: Any) -> Callable[[Tensor | float], None]:
    """Multiply the gradients themselves, for the optimizer without a loss scale."""

    def multiply(factor: Tensor | float) -> None:
        if isinstance(factor, Tensor) or factor != 1.0:
            torch._foreach_mul_(zero.fp32_groups_gradients_flat, factor)

    return multiply
