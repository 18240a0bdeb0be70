"""Any scheduler class with torch's interface, named by `_target_`: it takes an optimizer and keyword arguments."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, final

from runner.config.imports import locate
from runner.config.parts import TARGET
from runner.config.signatures import binding_errors
from runner.errors import Fault
from runner.protocols import Scheduler

if TYPE_CHECKING:
    import torch

    from runner.config.run_spec import RunSpec


@final
@dataclass(frozen=True, kw_only=True)
class ForeignSchedule:
    """Adapter for a scheduler class that is not one of the runner's parts; it steps once per optimizer step."""

    target: str
    """Dotted path of a scheduler: torch.optim.lr_scheduler.OneCycleLR."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """Keyword arguments of the constructor."""
    positional: ClassVar[int | None] = 1
    """How many positional arguments the constructor gets besides."""

    def check(self, spec: "RunSpec") -> Iterable[Fault]:
        """Requires that the constructor accepts the arguments, by building it for an SGD over a single scalar."""
        try:
            scheduler = self._probe(steps=spec.run.steps)
        except ValueError as error:
            yield Fault(key="schedule", message=f"{self.target} rejects {dict(self.arguments)}: {error}")
            return
        missing = [name for name in ("step", "state_dict", "load_state_dict") if name not in dir(scheduler)]
        if missing:
            kind = type(scheduler).__name__
            rule = (
                f"{self.target} makes a {kind}, but a scheduler has {', '.join(missing)} as those of torch.optim have."
            )
            yield Fault(key=f"schedule.{TARGET}", message=rule)
        elif list(binding_errors(scheduler.step, "step", positional=0, named=())):
            rule = f"{self.target}.step needs an argument, but the runner gives none. Use another schedule."
            yield Fault(key=f"schedule.{TARGET}", message=rule)

    def _probe(self, *, steps: int) -> Scheduler:
        """The scheduler of an SGD over a single scalar.

        Raises:
            ValueError: its constructor raises.
        """
        import torch

        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0, momentum=0.9)
        try:
            return self.build(optimizer, steps=steps)
        except Exception as error:  # another library's class may raise anything
            raise ValueError(f"{type(error).__name__}: {error}") from error

    def build(self, optimizer: "torch.optim.Optimizer", *, steps: int) -> Scheduler:
        """Builds the scheduler from its own arguments; `steps` is not used."""
        scheduler: Scheduler = locate(self.target)(optimizer, **self.arguments)
        return scheduler
