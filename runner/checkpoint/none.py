"""Write no checkpoints. A run can still be continued from those that it already has."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
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

    every_steps: int | None = None
    """Always null."""
    every_minutes: float | None = None
    """Always null."""
    at_end: bool = False
    """Always false."""

    def check(self, spec: "RunSpec") -> Iterable[Fault]:
        """Check that nothing else in the spec asks for a checkpoint."""
        asked = {"every_steps": self.every_steps, "every_minutes": self.every_minutes, "at_end": self.at_end or None}
        for name, value in asked.items():
            if value is not None:
                rule = f"{name}={value}, but checkpoint=none never saves. Drop it, or choose checkpoint=sharded."
                yield Fault(key=f"checkpoint.{name}", message=rule)
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

    def wait(self) -> None:
        """Do nothing."""
