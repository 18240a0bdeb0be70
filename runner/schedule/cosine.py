"""Half a cosine down to a final factor, after an optional warm-up: Loshchilov, Hutter (ICLR 2017), without restarts."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, final

import torch

from runner.errors import Fault
from runner.protocols import Scheduler
from runner.schedule.factor import annealed, check_fields, warmup_faults

if TYPE_CHECKING:
    from runner.config.run_spec import RunSpec


@final
@dataclass(frozen=True, kw_only=True)
class Cosine:
    """lr = base × (final_factor + (1 − final_factor) × (1 + cos(π × progress)) / 2)."""

    warmup_steps: int = 0
    """Optimizer steps of linear warm-up; 0 = off."""
    final_factor: float = 0.0
    """What the base rate is multiplied by when all steps are done."""

    def __post_init__(self) -> None:
        check_fields(self.warmup_steps, self.final_factor)

    def check(self, spec: "RunSpec") -> Iterable[Fault]:
        """Warm-up must end before the run does."""
        return warmup_faults(self.warmup_steps, spec.run.steps)

    def build(self, optimizer: torch.optim.Optimizer, *, steps: int) -> Scheduler:
        """Spans all steps of the run, wherever an attempt begins or ends."""
        return annealed(
            optimizer,
            steps=steps,
            warmup_steps=self.warmup_steps,
            final_factor=self.final_factor,
            curve=lambda after: 0.5 * (1.0 + math.cos(math.pi * after)),
        )
