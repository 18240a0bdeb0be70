"""Learning rates as the base rate times a pure function of the optimizer steps done."""

from collections.abc import Callable, Iterator
from typing import Any, final

import torch

from runner.errors import Fault


@final
class FactorScheduler:
    """Sets lr = base × factor(steps done) in every parameter group. Its state is the count of steps alone."""

    def __init__(self, optimizer: torch.optim.Optimizer, factor: Callable[[int], float]) -> None:
        self._optimizer = optimizer  # not its groups: loading a state puts others in their place
        self._bases = [group["lr"] for group in optimizer.param_groups]
        self._factor = factor
        self._steps = 0
        self._apply()

    def step(self) -> None:
        """One optimizer step was taken."""
        self._steps += 1
        self._apply()

    def state_dict(self) -> dict[str, Any]:
        """The optimizer steps done."""
        return {"steps": self._steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue there; rates come from this run's spec, so a resumed run may change them."""
        self._steps = state["steps"]
        self._apply()

    def _apply(self) -> None:
        factor = self._factor(self._steps)
        for group, base in zip(self._optimizer.param_groups, self._bases, strict=True):
            group["lr"] = base * factor


@final
class FixedScheduler:
    """Leaves learning rates as they are."""

    def step(self) -> None:
        """Nothing moves."""

    def state_dict(self) -> dict[str, Any]:
        """Nothing to keep."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to restore."""


def warmed_up(steps_done: int, warmup_steps: int) -> float:
    """Factor of a linear warm-up: the first step runs at 1/warmup_steps, the last of them at 1."""
    return min(1.0, (steps_done + 1) / warmup_steps) if warmup_steps else 1.0


def annealed(
    optimizer: torch.optim.Optimizer,
    *,
    steps: int,
    warmup_steps: int,
    final_factor: float,
    curve: Callable[[float], float],
) -> FactorScheduler:
    """Warm up, then fall from 1 to `final_factor` along `curve`: from 1 to 0 while its argument goes from 0 to 1."""

    def factor(done: int) -> float:
        after = min(1.0, max(0, done - warmup_steps) / max(1, steps - warmup_steps))
        return warmed_up(done, warmup_steps) * (final_factor + (1.0 - final_factor) * curve(after))

    return FactorScheduler(optimizer, factor)


def warmup_faults(warmup_steps: int, steps: int) -> Iterator[Fault]:
    """Warm-up must end before the run does."""
    if warmup_steps > steps:
        rule = f"{warmup_steps} steps of warm-up do not fit in run.steps={steps}. Use fewer."
        yield Fault(key="schedule.warmup_steps", message=rule)


def check_fields(warmup_steps: int, final_factor: float) -> None:
    """Own-field rules of the schedules with warm-up.

    Raises:
        ValueError: a number out of range.
    """
    if warmup_steps < 0:
        raise ValueError(f"warmup_steps={warmup_steps} must not be negative.")
    if not 0 <= final_factor <= 1:
        raise ValueError(f"final_factor={final_factor} must lie in [0, 1].")
