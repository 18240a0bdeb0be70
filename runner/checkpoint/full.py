"""Rank 0 writes one file that holds every tensor whole. For models that are small enough to wait for one writer."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, final

from runner.checkpoint.retention import Retention
from runner.checkpoint.save import Saved, check_cadence, open_checkpoints, save_into
from runner.config.sections import flattened
from runner.errors import Fault
from runner.protocols import Progress, State, World
from runner.storage.names import to_names

if TYPE_CHECKING:
    from torch import Tensor

    from runner.config.run_spec import RunSpec


@final
@dataclass(frozen=True, kw_only=True)
class Full:
    """Save into <run>/checkpoints/step_<n>/state.safetensors, each checkpoint committed by one rename."""

    every_steps: int | None = 500
    """Optimizer steps between checkpoints; null = off."""
    every_minutes: float | None = None
    """Minutes between checkpoints, beside every_steps; null = off."""
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
        """For this run's directory; removes what a killed attempt left half written. Collective."""
        return FullCheckpointer(open_checkpoints(run_dir, world), self, world)


@final
class FullCheckpointer:
    """Saves one run. All methods are collective."""

    def __init__(self, checkpoints: Path, part: Full, world: World) -> None:
        self._checkpoints = checkpoints
        self._retention = part.retention
        self._world = world

    def save(self, state: "State[Tensor]", *, progress: Progress, metrics: Mapping[str, float]) -> None:
        """Commit, then drop what retention does not keep.

        Raises:
            CheckpointError: it could not be written; the last commit stands as it was. Or it was, but `metrics` has
                other evaluations than the one that keep_best goes by.
        """
        from runner.checkpoint.gather import write_gathered

        saved = Saved(values=state.values, progress=progress, metrics=metrics)
        save_into(
            self._checkpoints,
            self._world,
            saved,
            self._retention,
            write=lambda world, partial: write_gathered(world, partial, to_names(state)),
        )

    def poll(self, state: "Callable[[], State[Tensor]]") -> None:
        """Nothing is under way: a save is on the disk when it returns."""

    def wait(self) -> None:
        """Nothing is under way."""
