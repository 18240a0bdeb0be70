"""Any scheduler class with torch's interface, named by `_target_`: it takes an optimizer and keyword arguments."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, final

import torch
from torch.nn import Parameter

from runner.config.imports import NotFound, locate
from runner.errors import Fault
from runner.protocols import Scheduler

if TYPE_CHECKING:
    from runner.config.run_spec import RunSpec


@final
@dataclass(frozen=True, kw_only=True)
class ForeignSchedule:
    """Adapter for a scheduler class that is not one of the runner's parts; it steps once per optimizer step."""

    target: str
    """Dotted path of a scheduler: torch.optim.lr_scheduler.OneCycleLR."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """Keyword arguments of the constructor."""

    def check(self, spec: "RunSpec") -> Iterable[Fault]:
        """Requires that the constructor accepts the arguments, by building it for an SGD over a single scalar."""
        probe = torch.optim.SGD([Parameter(torch.zeros(1))], lr=1.0, momentum=0.9)
        try:
            self.build(probe, steps=spec.run.steps)
        except NotFound as missing:
            yield Fault(key="schedule", message=f"{self.target} cannot be used: {missing}")
        except (TypeError, ValueError) as error:
            yield Fault(key="schedule", message=f"{self.target} rejects {dict(self.arguments)}: {error}")

    def build(self, optimizer: torch.optim.Optimizer, *, steps: int) -> Scheduler:
        """Builds the scheduler from its own arguments; `steps` is not used."""
        scheduler: Scheduler = locate(self.target)(optimizer, **self.arguments)
        return scheduler
