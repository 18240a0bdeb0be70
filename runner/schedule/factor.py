"""Schedules that multiply the base learning rate by a pure function of the number of optimizer steps taken."""

import math
import re
from collections.abc import Callable, Iterator
from enum import Enum
from fractions import Fraction
from typing import TYPE_CHECKING, Any, final

from runner.errors import Fault

if TYPE_CHECKING:
    import torch


SHARE = re.compile(r"(\d+(?:\.\d+)?) ?%")


@final
class FactorScheduler:
    """Sets lr = base × factor(steps taken) in every parameter group. Its only state is the number of steps taken."""

    def __init__(self, optimizer: "torch.optim.Optimizer", factor: Callable[[int], float]) -> None:
        self._optimizer = optimizer  # not its param_groups: load_state_dict replaces them
        self._bases = [group["lr"] for group in optimizer.param_groups]
        self._factor = factor
        self._steps = 0
        self._apply()

    def step(self) -> None:
        """Advances the schedule by one optimizer step."""
        self._steps += 1
        self._apply()

    def state_dict(self) -> dict[str, Any]:
        """Returns the number of optimizer steps taken."""
        return {"steps": self._steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores the step count only: learning rates come from the spec, so a resumed run may change them."""
        self._steps = state["steps"]
        self._apply()

    def _apply(self) -> None:
        factor = self._factor(self._steps)
        for group, base in zip(self._optimizer.param_groups, self._bases, strict=True):
            group["lr"] = base * factor


@final
class FixedScheduler:
    """Leaves the learning rates unchanged."""

    def step(self) -> None:
        """Does nothing."""

    def state_dict(self) -> dict[str, Any]:
        """Has no state."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Does nothing, since there is no state."""


class Start(Enum):
    """The factor of the first step of a warm-up."""

    STEP = "step"
    """1 / warmup_steps: no step is lost, and step number `warmup_steps` is the first at the full rate."""
    ZERO = "zero"
    """0, as in transformers: the first step changes nothing, and the one after the warm-up is at the full rate."""


def warmup_factor(steps_taken: int, warmup_steps: int, start: Start) -> float:
    """Return the factor of a linear warm-up for the step that follows `steps_taken` steps."""
    climbed = steps_taken + 1 if start is Start.STEP else steps_taken
    return min(1.0, climbed / warmup_steps) if warmup_steps else 1.0


def decay_scheduler(
    optimizer: "torch.optim.Optimizer",
    *,
    steps: int,
    warmup_steps: int,
    warmup_start: Start,
    final_factor: float,
    curve: Callable[[float], float],
) -> FactorScheduler:
    """Build a scheduler that warms up, then decays the factor from 1 to `final_factor`.

    Args:
        curve: the shape of the decay. Maps progress after the warm-up, from 0 to 1, to values from 1 to 0.
    """

    def factor(steps_taken: int) -> float:
        progress = min(1.0, max(0, steps_taken - warmup_steps) / max(1, steps - warmup_steps))
        return warmup_factor(steps_taken, warmup_steps, warmup_start) * (
            final_factor + (1.0 - final_factor) * curve(progress)
        )

    return FactorScheduler(optimizer, factor)


def count_warmup_steps(warmup_steps: int | str, steps: int) -> int:
    """The number of warm-up steps, where they are given as a share of the run rounded up, as transformers does.

    Args:
        warmup_steps: as `check_fields` accepts them.
        steps: of the whole run.
    """
    share = SHARE.fullmatch(str(warmup_steps))
    return math.ceil(Fraction(share[1]) * steps / 100) if share else int(warmup_steps)


def warmup_faults(warmup_steps: int | str, steps: int) -> Iterator[Fault]:
    """Yield a fault if the warm-up does not fit in run.steps."""
    if count_warmup_steps(warmup_steps, steps) > steps:
        rule = f"{warmup_steps} warm-up steps do not fit in run.steps={steps}. Use fewer, or a share of the run: 5%."
        yield Fault(key="schedule.warmup_steps", message=rule)


def check_fields(warmup_steps: int | str, final_factor: float) -> None:
    """Validate the fields that the schedules with warm-up share.

    Raises:
        ValueError: a value is out of range.
    """
    share = SHARE.fullmatch(str(warmup_steps))
    if (share is None and not str(warmup_steps).isdecimal()) or (share is not None and Fraction(share[1]) > 100):
        rule = "must be a number of steps that is not negative, or a share of the run such as 5%."
        raise ValueError(f"warmup_steps={warmup_steps} {rule}")
    if not 0 <= final_factor <= 1:
        raise ValueError(f"final_factor={final_factor} must lie in [0, 1].")
