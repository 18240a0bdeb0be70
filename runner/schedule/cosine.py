"""Cosine annealing after an optional linear warm-up: Loshchilov and Hutter (ICLR 2017), without restarts."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, final

from runner.errors import Fault
from runner.protocols import Scheduler
from runner.schedule.factor import Start, check_fields, count_warmup_steps, decay_scheduler, warmup_faults

if TYPE_CHECKING:
    import torch

    from runner.config.run_spec import RunSpec


@final
@dataclass(frozen=True, kw_only=True)
class Cosine:
    """lr = base × (final_factor + (1 − final_factor) × (1 + cos(π × progress)) / 2)."""

    warmup_steps: int | str = 0
    """Number of optimizer steps of linear warm-up, or their share of the run, such as 5%; 0 = off."""
    warmup_start: Start = Start.STEP
    """The rate of the first step of the warm-up: 1/warmup_steps of the base, or 0."""
    final_factor: float = 0.0
    """Factor of the base learning rate at the end of the run."""

    def __post_init__(self) -> None:
        check_fields(self.warmup_steps, self.final_factor)

    def check(self, spec: "RunSpec") -> Iterable[Fault]:
        """Requires the warm-up to fit in run.steps."""
        return warmup_faults(self.warmup_steps, spec.run.steps)

    def build(self, optimizer: "torch.optim.Optimizer", *, steps: int) -> Scheduler:
        """Builds a schedule over all steps of the run, regardless of where an attempt starts or stops."""
        return decay_scheduler(
            optimizer,
            steps=steps,
            warmup_steps=count_warmup_steps(self.warmup_steps, steps),
            warmup_start=self.warmup_start,
            final_factor=self.final_factor,
            curve=lambda progress: 0.5 * (1.0 + math.cos(math.pi * progress)),
        )
