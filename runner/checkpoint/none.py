"""Write no checkpoints. A run can still be continued from those that it already has."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, final

from runner.errors import Fault
from runner.protocols import Progress, State, World

if TYPE_CHECKING:
    from torch import Tensor

    from runner.config.run_spec import RunSpec


@final
@dataclass(frozen=True, kw_only=True)
class NoCheckpoint:
    """Save nothing: a run that dies is lost."""

    every_steps: None = field(default=None, init=False)
    every_minutes: None = field(default=None, init=False)
    at_end: bool = field(default=False, init=False)

    def check(self, spec: "RunSpec") -> Iterable[Fault]:
        """Check that nothing else in the spec asks for a checkpoint."""
        if spec.run.stop_at_step is not None:
            rule = f"stop_at_step={spec.run.stop_at_step} ends with a commit. Drop it, or choose checkpoint=sharded."
            yield Fault(key="run.stop_at_step", message=rule)

    def open(self, run_dir: Path, world: World) -> "NoCheckpointer":
        """Leave the run's directory as it is."""
        return NoCheckpointer()


@final
class NoCheckpointer:
    """Saves nothing."""

    def save(self, state: "State[Tensor]", *, progress: Progress, metrics: Mapping[str, float]) -> None:
        """Do nothing."""

    def poll(self, state: "Callable[[], State[Tensor]]") -> None:
        """Do nothing."""

    def finish_copy(self, *, after_forward: bool) -> None:
        """Do nothing."""

    def wait(self) -> None:
        """Do nothing."""
