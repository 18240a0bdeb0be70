"""Checks that steps are finite: where the host waits for the device anyway or, in order to skip, in every step."""

import math
from collections.abc import Mapping
from typing import Protocol, final

import torch
from torch import Tensor

from runner.config.run_spec import Guard, NonFinite
from runner.errors import NonFiniteError
from runner.protocols import Precision, StepLoss, Trainable, World


class StepGuard(Protocol):
    """Decides whether a step's gradient may be applied to the weights."""

    @property
    def needs_values(self) -> bool:
        """Whether it needs the values of a boundary step even if they are not logged."""
        ...

    def allows(self, trainable: Trainable, loss: StepLoss, world: World) -> bool:
        """Whether the optimizer may take this step. The same on every rank; collective.

        If not, the guard has discarded the step.
        """
        ...

    def suspects(self, values: Mapping[str, float], loss: StepLoss, world: World) -> bool:
        """Whether the values of a step show that it was not finite; the same on every rank. Collective."""
        ...

    def suspects_skipped(self, loss: StepLoss, world: World) -> bool:
        """Whether a step that the strategy or the precision skipped was not finite. Collective."""
        ...


@final
class AtBoundaries:
    """Checks the values that the host reads at step boundaries: other steps have no overhead.

    That is soon enough: a non-finite gradient makes the weights non-finite, which shows at the next boundary, and no
    checkpoint is committed unchecked.
    """

    needs_values = True

    def allows(self, trainable: Trainable, loss: StepLoss, world: World) -> bool:
        """Always; a non-finite gradient shows at the next boundary."""
        return True

    def suspects(self, values: Mapping[str, float], loss: StepLoss, world: World) -> bool:
        """Whether loss or gradient norm is nan or inf. The mean loss of a step with count 0 is nan without a fault."""
        if not math.isfinite(values.get("train/grad_norm", 0.0)):
            return True
        # Under some strategies each rank knows the count of its own replica only.
        return not math.isfinite(values.get("train/loss", 0.0)) and world.any(float(loss.count) != 0)

    def suspects_skipped(self, loss: StepLoss, world: World) -> bool:
        """Always: without a loss scale, a step is skipped (by DeepSpeed) only if its gradient is not finite."""
        return True


@final
class UnderScaling:
    """Like `AtBoundaries`, for a precision that skips steps whose gradient overflows under its loss scale.

    A skipped step does not show in the weights. So each step records on the device whether its losses are finite, which
    is read when a step was skipped, or at the boundary.
    """

    needs_values = True

    def __init__(self) -> None:
        self._at_boundaries = AtBoundaries()
        self._non_finite: list[Tensor] = []  # at most one tensor: whether any loss since the last check was not finite

    def allows(self, trainable: Trainable, loss: StepLoss, world: World) -> bool:
        """Always; records on the device whether the losses are finite."""
        found = [~one.value.detach().isfinite() for one in loss.losses] + self._non_finite
        self._non_finite = [torch.stack(found).any()] if found else []  # not every stage of a pipeline has losses
        return True

    def suspects(self, values: Mapping[str, float], loss: StepLoss, world: World) -> bool:
        """Whether any loss since the last check was not finite, even of a skipped step."""
        return self._at_boundaries.suspects(values, loss, world) or self.suspects_skipped(loss, world)

    def suspects_skipped(self, loss: StepLoss, world: World) -> bool:
        """Whether any loss since the last check was not finite; if none, a scaled gradient overflowed."""
        non_finite, self._non_finite = self._non_finite, []
        return world.any(any(map(bool, non_finite)))


@final
class EachStep:
    """Checks before every update; the host waits for the device in each step."""

    needs_values = False

    def __init__(self, *, max_skipped: int, scales: bool) -> None:
        self._max_skipped = max_skipped
        self._scales = scales
        self._skipped = 0

    def allows(self, trainable: Trainable, loss: StepLoss, world: World) -> bool:
        """Whether loss and gradient are finite on every rank.

        Raises:
            NonFiniteError: too many steps in a row were not.
        """
        if is_finite(trainable, loss, world, scaled=self._scales):
            self._skipped = 0
            return True
        trainable.discard()
        self._skipped += 1
        if self._skipped > self._max_skipped:
            raise NonFiniteError(
                f"guard.max_skipped={self._max_skipped} steps in a row were skipped, and the next one is not "
                "finite either: skipping steps does not help. guard.json has their origins. Lower optimizer.lr, "
                "set clip.norm, or resume from an older checkpoint: --from step_N."
            )
        return False

    def suspects(self, values: Mapping[str, float], loss: StepLoss, world: World) -> bool:
        """Never: every applied step was checked before."""
        return False

    def suspects_skipped(self, loss: StepLoss, world: World) -> bool:
        """Never: `allows` has counted the steps that this guard skipped."""
        return False


@final
class Unguarded:
    """Checks no step, for guard.non_finite=ignore."""

    needs_values = False

    def allows(self, trainable: Trainable, loss: StepLoss, world: World) -> bool:
        """Always, without a check."""
        return True

    def suspects(self, values: Mapping[str, float], loss: StepLoss, world: World) -> bool:
        """Never, since nothing is checked."""
        return False

    def suspects_skipped(self, loss: StepLoss, world: World) -> bool:
        """Never, since nothing is checked."""
        return False


def open_guard(guard: Guard, precision: Precision) -> StepGuard:
    """The guard for a recipe's `guard` section and precision."""
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
