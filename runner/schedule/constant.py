"""The same learning rate throughout, after an optional warm-up."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, final

import torch

from runner.errors import Fault
from runner.protocols import Scheduler
from runner.schedule.factor import FactorScheduler, FixedScheduler, check_fields, warmed_up

if TYPE_CHECKING:
    from runner.config.run_spec import RunSpec


@final
@dataclass(frozen=True, kw_only=True)
class Constant:
    """lr = base."""

    warmup_steps: int = 0
    """Optimizer steps of linear warm-up; 0 = off."""

    def __post_init__(self) -> None:
        check_fields(self.warmup_steps, 1.0)

    def check(self, spec: "RunSpec") -> Iterable[Fault]:
        """Goes with everything."""
        return ()

    def build(self, optimizer: torch.optim.Optimizer, *, steps: int) -> Scheduler:
        """Without warm-up nothing is touched at all."""
        if self.warmup_steps == 0:
            return FixedScheduler()
        return FactorScheduler(optimizer, lambda done: warmed_up(done, self.warmup_steps))
