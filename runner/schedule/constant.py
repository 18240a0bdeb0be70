"""Constant learning rate after an optional linear warm-up."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, final

from runner.errors import Fault
from runner.protocols import Scheduler
from runner.schedule.factor import (
    FactorScheduler,
    FixedScheduler,
    Start,
    check_fields,
    count_warmup_steps,
    warmup_factor,
)

if TYPE_CHECKING:
    import torch

    from runner.config.run_spec import RunSpec


@final
@dataclass(frozen=True, kw_only=True)
class Constant:
    """lr = base."""

    warmup_steps: int | str = 0
    """Number of optimizer steps of linear warm-up, or their share of the run, such as 5%; 0 = off."""
    warmup_start: Start = Start.STEP
    """The rate of the first step of the warm-up: 1/warmup_steps of the base, or 0."""

    def __post_init__(self) -> None:
        check_fields(self.warmup_steps, 1.0)

    def check(self, spec: "RunSpec") -> Iterable[Fault]:
        """Yields nothing: works with every other part."""
        return ()

    def build(self, optimizer: "torch.optim.Optimizer", *, steps: int) -> Scheduler:
        """Builds a scheduler for the warm-up; without one, it never touches the optimizer."""
        warmup_steps, start = count_warmup_steps(self.warmup_steps, steps), self.warmup_start
        if warmup_steps == 0:
            return FixedScheduler()
        return FactorScheduler(optimizer, lambda steps_taken: warmup_factor(steps_taken, warmup_steps, start))
