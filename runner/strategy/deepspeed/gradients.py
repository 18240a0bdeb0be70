"""The gradients of a step inside a DeepSpeed optimizer, between its last backward and its step."""

from collections.abc import Callable
from typing import Any, final

import torch
from torch import Tensor

from runner.protocols import Clip, World
from runner.strategy.common.module_trainable import all_finite


@final
class Gradients:
    """This rank's part of them, averaged over ranks; what divides and clips them."""

    def __init__(self, zero: Any, clip: Clip, world: World) -> None:
        self._zero = zero
        self._clip = clip
        self._world = world
        self._under_way = False  # whether a backward came since the last step
        self._spoiled: list[Tensor] = []
        self._owned: Callable[[], list[Tensor]]
        self._held: Callable[[], list[Tensor]]
        if "fp32_groups_gradients_flat" in vars(zero):  # stage 1 in bfloat16: every rank holds all of them
            self._owned = lambda: zero.fp32_groups_gradient_flat_partition
            self._held = lambda: zero.fp32_groups_gradients_flat
            self._multiply = _in_place(zero)
        else:
            self._owned = self._held = lambda: [
                tensor for group in zero.averaged_gradients.values() for tensor in group
            ]
            self._multiply = _by_loss_scale(zero)
        # An offloaded optimizer keeps gradients where it steps them, and of each only its norm here.
        self._is_offloaded = any(vars(zero).get(name) for name in ("cpu_offload", "offload_optimizer"))

    def _norms(self) -> list[Tensor]:
        return list(self._zero.norm_for_param_grads.values())

    def begin(self) -> None:
        """A step's first backward is next: losses are taken as they are."""
        self._under_way = True
        self._multiply(1.0)

    def finite(self) -> bool:
        """Whether all gradients of all ranks are finite. Collective; waits for the device."""
        found = self._norms() if self._is_offloaded else self._owned()
        return not self._world.any(not bool(all_finite(found)))

    def spoil(self) -> bool:
        """Make the gradients such that DeepSpeed skips the step.

        Returns:
            Whether there are any: whether a backward came since the last step.
        """
        if not self._under_way:
            return False
        self._multiply(1.0)
        self._spoiled = self._norms() if self._is_offloaded else self._held()
        for tensor in self._spoiled:
            tensor.fill_(torch.nan)
        return True

    def finish(self, factor: Tensor | float) -> Tensor | None:
        """Have the step multiply them by a factor; clip each element here, since DeepSpeed does not.

        Returns:
            Their norm before that, if elements are clipped: the one that DeepSpeed measures comes after it. Collective.
        """
        self._under_way = False
        norm = None
        if self._clip.value is not None:
            squares = [tensor.float().square().sum() for tensor in self._owned()]
            norm = self._world.sum(torch.stack(squares).sum()).sqrt() * factor
            # A gradient that is not finite stays so: DeepSpeed is to find it, and not a clipped infinity.
            bound = torch.where(norm.isfinite(), self._clip.value / factor, torch.inf)
            for tensor in self._held():
                tensor.clamp_(-bound, bound)
        self._multiply(factor)
        return norm

    def forget(self) -> None:
        """DeepSpeed has skipped a step.

        Where the optimizer is offloaded, DeepSpeed 0.19.8 keeps what spoilt it, and would add the next step onto that.
        Stage 3 writes the next gradients into the same buffers, but never into their padding, which must not stay NaN.
        """
        self._under_way = False
        for tensor in self._spoiled:
            tensor.zero_()
        self._spoiled = []
        if "averaged_gradients" in vars(self._zero):
            for group in self._zero.averaged_gradients:
                self._zero.averaged_gradients[group] = None


def _by_loss_scale(zero: Any) -> Callable[[Tensor | float], None]:
    """The factor is the inverse of a loss scale, which DeepSpeed folds into clipping.

    `override_loss_scale` would do, but compares and prints it, for which the host must wait: it is a tensor where the
    count is data.
    """
    from deepspeed.runtime.fp16.loss_scaler import LossScaler

    zero.custom_loss_scaler = True
    zero.loss_scaler = LossScaler(scale=1.0)  # not one that moves: the precision's does

    def multiply(factor: Tensor | float) -> None:
        zero.external_loss_scale = 1.0 / factor

    return multiply


def _in_place(zero: Any) -> Callable[[Tensor | float], None]:
    """For the optimizer that has no loss scale."""

    def multiply(factor: Tensor | float) -> None:
        if isinstance(factor, Tensor) or factor != 1.0:
            torch._foreach_mul_(zero.fp32_groups_gradients_flat, factor)

    return multiply
