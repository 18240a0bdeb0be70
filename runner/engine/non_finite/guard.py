"""Whether a step is finite: checked where the host waits for the device anyway or, to skip a step, at every step."""

import math
from collections.abc import Mapping
from typing import Protocol, final

import torch
from torch import Tensor

from runner.config.run_spec import Guard, NonFinite
from runner.errors import NonFiniteError
from runner.protocols import Precision, StepLoss, Trainable, World


class StepGuard(Protocol):
    """What stands between the gradient of a step and the weights."""

    @property
    def looks(self) -> bool:
        """Whether it needs the numbers of a step boundary, even where nothing logs them."""
        ...

    def allows(self, trainable: Trainable, loss: StepLoss, world: World) -> bool:
        """Whether the optimizer may take this step. The same on every rank; collective.

        A step that is not allowed has been discarded.
        """
        ...

    def suspects(self, values: Mapping[str, float], loss: StepLoss, world: World) -> bool:
        """Whether a step that was taken is to be looked into, by its values, the same on every rank. Collective."""
        ...

    def suspects_skipped(self, loss: StepLoss, world: World) -> bool:
        """Whether a step that the strategy or the precision skipped is to be looked into. Collective."""
        ...


@final
class AtBoundaries:
    """Checks what the host reads at step boundaries: the steps between them pay nothing.

    That is soon enough. A gradient that is not finite makes weights that are not, so that the next boundary shows it;
    and nothing is committed unchecked.
    """

    looks = True

    def allows(self, trainable: Trainable, loss: StepLoss, world: World) -> bool:
        """Always: whatever it is, it still shows at the boundary."""
        return True

    def suspects(self, values: Mapping[str, float], loss: StepLoss, world: World) -> bool:
        """Loss or gradient norm is nan or inf. A step in which nothing counts has no mean: its nan is no fault."""
        if not math.isfinite(values.get("train/grad_norm", 0.0)):
            return True
        return not math.isfinite(values.get("train/loss", 0.0)) and float(loss.count) != 0

    def suspects_skipped(self, loss: StepLoss, world: World) -> bool:
        """Always: without a loss scale, a step is skipped (by DeepSpeed) only if its gradient is not finite."""
        return True


@final
class UnderScaling:
    """As `AtBoundaries`, where the precision itself skips steps whose gradient overflows under its loss scale.

    A skipped step leaves no trace in the weights. So whether the losses themselves are finite is noted on the device in
    each step, and read when a step was skipped, or at the boundary.
    """

    looks = True

    def __init__(self) -> None:
        self._at_boundaries = AtBoundaries()
        self._noted: list[Tensor] = []  # one at most: whether some loss so far was not finite

    def allows(self, trainable: Trainable, loss: StepLoss, world: World) -> bool:
        """Always. Nothing is waited for."""
        values = [one.value.detach() for one in loss.losses]
        self._noted = [torch.stack([~value.isfinite() for value in values] + self._noted).any()]
        return True

    def suspects(self, values: Mapping[str, float], loss: StepLoss, world: World) -> bool:
        """Some loss since the last check was not finite, whether its step was taken or not."""
        return self._at_boundaries.suspects(values, loss, world) or self.suspects_skipped(loss, world)

    def suspects_skipped(self, loss: StepLoss, world: World) -> bool:
        """Some loss since the last check was not finite; otherwise a scaled gradient overflowed."""
        noted, self._noted = self._noted, []
        return world.any(any(map(bool, noted)))


@final
class EachStep:
    """Checks before every update, which the host then waits for."""

    looks = False

    def __init__(self, *, max_skipped: int, scales: bool) -> None:
        self._max_skipped = max_skipped
        self._scales = scales
        self._skipped = 0

    def allows(self, trainable: Trainable, loss: StepLoss, world: World) -> bool:
        """Whether loss and gradient are finite on every rank.

        Raises:
            NonFiniteError: too many in a row were not.
        """
        if is_finite(trainable, loss, world, scaled=self._scales):
            self._skipped = 0
            return True
        trainable.discard()
        self._count()
        return False

    def suspects(self, values: Mapping[str, float], loss: StepLoss, world: World) -> bool:
        """Never: every step that was taken was checked."""
        return False

    def suspects_skipped(self, loss: StepLoss, world: World) -> bool:
        """Never: `allows` has counted the steps that this guard skipped."""
        return False

    def _count(self) -> None:
        self._skipped += 1
        if self._skipped > self._max_skipped:
            raise NonFiniteError(
                f"guard.max_skipped={self._max_skipped} steps in a row were left out, and the next is not finite "
                "either: leaving steps out does not help. guard.json says where they come from. Lower optimizer.lr, "
                "set clip.norm, or resume from an older checkpoint: --from step_N."
            )


@final
class Unguarded:
    """Checks nothing."""

    looks = False

    def allows(self, trainable: Trainable, loss: StepLoss, world: World) -> bool:
        """Always."""
        return True

    def suspects(self, values: Mapping[str, float], loss: StepLoss, world: World) -> bool:
        """Never."""
        return False

    def suspects_skipped(self, loss: StepLoss, world: World) -> bool:
        """Never."""
        return False


def open_guard(guard: Guard, precision: Precision) -> StepGuard:
    """The guard that the recipe asks for."""
    scales = precision.scaler().scales
    if guard.non_finite is NonFinite.SKIP:
        return EachStep(max_skipped=guard.max_skipped, scales=scales)
    if guard.non_finite is NonFinite.IGNORE:
        return Unguarded()
    return UnderScaling() if scales else AtBoundaries()


def is_finite(trainable: Trainable, loss: StepLoss, world: World, *, scaled: bool) -> bool:
    """Whether losses and gradients of all ranks are finite, between `forward_backward` and `update`. Collective.

    The host waits for the device.

    Args:
        scaled: gradients may overflow under a loss scale; only the losses are checked.
    """
    gradients = scaled or bool(trainable.gradients_finite())  # before the losses, since it may be collective
    losses = all(math.isfinite(one.value.item()) for one in loss.losses)
    return not world.any(not (gradients and losses))
