"""Rank 0 writes one file that holds every tensor whole. For models small enough to wait for a single writer."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, final

from runner.checkpoint.retention import Retention
from runner.checkpoint.save import SaveMetadata, check_cadence, open_checkpoints, save_into
from runner.config.sections import flattened
from runner.errors import Fault
from runner.protocols import Progress, State, World
from runner.storage.history import History
from runner.storage.names import to_names

if TYPE_CHECKING:
    from torch import Tensor

    from runner.config.run_spec import RunSpec


@final
@dataclass(frozen=True, kw_only=True)
class Full:
    """Save into <run>/checkpoints/step_<n>/state.safetensors; a rename commits each checkpoint."""

    every_steps: int | None = 500
    """Optimizer steps between checkpoints; null = off."""
    every_minutes: float | None = None
    """Minutes between checkpoints, in addition to every_steps; null = off."""
    at_end: bool = True
    """Save when the run ends."""
    retention: Retention = flattened(Retention)
    """Which committed checkpoints are kept."""

    def __post_init__(self) -> None:
        check_cadence(every_steps=self.every_steps, every_minutes=self.every_minutes)

    def check(self, spec: "RunSpec") -> Iterable[Fault]:
        """Check what retention needs of the run."""
        return self.retention.check(spec)

    def open(self, run_dir: Path, world: World) -> "FullCheckpointer":
        """Open the run's directory, and remove what a killed attempt left behind. Collective."""
        return FullCheckpointer(open_checkpoints(run_dir, world), self, world)


@final
class FullCheckpointer:
    """Saves one run. All methods are collective."""

    def __init__(self, history: History, part: Full, world: World) -> None:
        self._history = history
        self._retention = part.retention
        self._world = world

    def save(self, state: "State[Tensor]", *, progress: Progress, metrics: Mapping[str, float]) -> None:
        """Commit a checkpoint, then delete those that retention does not keep.

        Raises:
            CheckpointError: as `save_into`.
        """
        from runner.checkpoint.gather import write_gathered

        saved = SaveMetadata(values=state.values, progress=progress, metrics=metrics)
        save_into(
            self._history,
            self._world,
            saved,
            self._retention,
            write=lambda world, partial, _: write_gathered(world, partial, to_names(state)),
        )

    def poll(self, state: "Callable[[], State[Tensor]]") -> None:
        """Do nothing: saves are synchronous."""

    def finish_copy(self, *, after_forward: bool) -> None:
        """Do nothing: saves are synchronous."""

    def wait(self) -> None:
        """Do nothing: saves are synchronous."""
