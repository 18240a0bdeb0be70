"""Any scheduler of torch's shape, named by `_target_`: a class that takes an optimizer and keyword arguments."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any, final

import torch
from torch.nn import Parameter

from runner.errors import Fault
from runner.protocols import Scheduler

if TYPE_CHECKING:
    from runner.config.run_spec import RunSpec


@final
@dataclass(frozen=True, kw_only=True)
class ForeignSchedule:
    """A scheduler class that is no part of the runner; it steps once for each optimizer step."""

    target: str
    """Dotted path of a scheduler: torch.optim.lr_scheduler.OneCycleLR."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """What it is built with, besides the optimizer."""

    def check(self, spec: "RunSpec") -> Iterable[Fault]:
        """Builds one beside an optimizer over a single number: its constructor knows best what it takes."""
        probe = torch.optim.SGD([Parameter(torch.zeros(1))], lr=1.0, momentum=0.9)
        try:
            self.build(probe, steps=spec.run.steps)
        except (TypeError, ValueError) as error:
            yield Fault(key="schedule", message=f"{self.target} refuses {dict(self.arguments)}: {error}")

    def build(self, optimizer: torch.optim.Optimizer, *, steps: int) -> Scheduler:
        """Its length is what its own arguments say."""
        module, _, name = self.target.rpartition(".")
        scheduler: Scheduler = vars(import_module(module))[name](optimizer, **self.arguments)
        return scheduler
