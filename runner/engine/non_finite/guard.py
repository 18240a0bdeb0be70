"""Whether a step is finite: asked where the host waits for the device anyway, or, to leave a step out, in each step."""

import math
from collections.abc import Iterator, Mapping
from typing import Protocol, final, runtime_checkable

import torch
from torch import Tensor

from runner.config.run_spec import Guard, NonFinite
from runner.errors import NonFiniteError
from runner.protocols import Precision, StepLoss, Trainable, World


@runtime_checkable
class Sharded(Protocol):
    """A DTensor, whose module takes a second to import."""

    def to_local(self) -> Tensor:
        """This rank's part."""
        ...


class StepGuard(Protocol):
    """What stands between the gradient of a step and the weights."""

    @property
    def looks(self) -> bool:
        """Whether the numbers of a step boundary are to be asked for, even where nothing logs them."""
        ...

    def allows(self, trainable: Trainable, loss: StepLoss, world: World) -> bool:
        """Whether the optimizer may take this step. The same on every rank; collective, if it asks anything."""
        ...

    def suspects(self, values: Mapping[str, float], loss: StepLoss, world: World) -> bool:
        """Whether a step with these values, the same on every rank, is to be looked into. Collective, if it asks."""
        ...


@final
class AtBoundaries:
    """Looks at what the host reads at step boundaries: steps between them pay nothing.

    That is soon enough. A gradient that is not finite makes weights of its kind, so that the next boundary shows it;
    and nothing is committed without a look.
    """

    looks = True

    def allows(self, trainable: Trainable, loss: StepLoss, world: World) -> bool:
        """Always: whatever it is, it is still there at the boundary."""
        return True

    def suspects(self, values: Mapping[str, float], loss: StepLoss, world: World) -> bool:
        """Loss or gradient norm is nan or inf. A step in which nothing counts has no mean: that nan is none."""
        if not math.isfinite(values.get("train/grad_norm", 0.0)):
            return True
        return not math.isfinite(values.get("train/loss", 0.0)) and float(loss.count) != 0


@final
class UnderScaling:
    """As `AtBoundaries`, where the precision itself leaves out steps whose gradient is not finite.

    Such a step leaves no trace in the weights, and one that overflowed only under its scale shall leave none. So what
    the losses themselves are is noted on the device in each step, and asked for when one was left out, or at the
    boundary.
    """

    looks = True

    def __init__(self) -> None:
        self._at_boundaries = AtBoundaries()
        self._noted: list[Tensor] = []  # one at most: whether some loss so far was not finite

    def allows(self, trainable: Trainable, loss: StepLoss, world: World) -> bool:
        """Always. Nothing is waited for."""
        values = [weighed.value.detach() for weighed in loss.losses]
        self._noted = [torch.stack([~value.isfinite() for value in values] + self._noted).any()]
        return True

    def suspects(self, values: Mapping[str, float], loss: StepLoss, world: World) -> bool:
        """Some loss since the last boundary was not finite, whether its step was taken or not. Collective."""
        noted, self._noted = self._noted, []
        return self._at_boundaries.suspects(values, loss, world) or world.any(any(map(bool, noted)))


@final
class EachStep:
    """Looks before every update, which the host then waits for."""

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
        if not world.any(not is_finite(trainable, loss, scaled=self._scales)):
            self._skipped = 0
            return True
        self._skipped += 1
        if self._skipped > self._max_skipped:
            raise NonFiniteError(
                f"guard.max_skipped={self._max_skipped} steps in a row were left out, and the next is not finite "
                "either: leaving steps out does not help. guard.json says where they come from. Lower optimizer.lr, "
                "set clip.norm, or resume from an older checkpoint: --from step_N."
            )
        return False

    def suspects(self, values: Mapping[str, float], loss: StepLoss, world: World) -> bool:
        """Never: every step that was taken was looked at."""
        return False


@final
class Unguarded:
    """Looks at nothing."""

    looks = False

    def allows(self, trainable: Trainable, loss: StepLoss, world: World) -> bool:
        """Always."""
        return True

    def suspects(self, values: Mapping[str, float], loss: StepLoss, world: World) -> bool:
        """Never."""
        return False


def open_guard(guard: Guard, precision: Precision) -> StepGuard:
    """As the recipe says."""
    if guard.non_finite is NonFinite.SKIP:
        return EachStep(max_skipped=guard.max_skipped, scales=scales(precision))
    if guard.non_finite is NonFinite.IGNORE:
        return Unguarded()
    return UnderScaling() if scales(precision) else AtBoundaries()


def scales(precision: Precision) -> bool:
    """Whether gradients are scaled, and steps in which one overflows left out, by the precision itself."""
    return bool(precision.scaler().record())


def is_finite(trainable: Trainable, loss: StepLoss, *, scaled: bool) -> bool:
    """Whether this rank's losses and gradients are, between `forward_backward` and `update`. The host waits.

    Args:
        scaled: gradients may overflow, since they were scaled; only the losses are asked.
    """
    if not all(math.isfinite(weighed.value.item()) for weighed in loss.losses):
        return False
    found = list(gradients(trainable))
    if scaled or not found:
        return True
    norms = [norm.to(found[0].device) for norm in torch._foreach_norm(found)]  # some gradients may be offloaded
    return math.isfinite(torch.stack(norms).sum().item())


def gradients(trainable: Trainable) -> Iterator[Tensor]:
    """This rank's part of each gradient that lies in place."""
    for group in trainable.optimizer.param_groups:
        for parameter in group["params"]:
            grad = parameter.grad
            if type(grad) is Tensor:
                yield grad
            elif isinstance(grad, Sharded):
                with torch.no_grad():
                    local = grad.to_local()
                yield local


def discard_gradients(trainable: Trainable) -> None:
    """As if the step had not been."""
    for group in trainable.optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = None
