"""No checkpoints are written. Those that a run has already can still be read, so that it can be continued."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, final

from runner.checkpoint.restore import Committed
from runner.config.run_dir import RunDir
from runner.errors import Fault
from runner.protocols import Progress, State, StoredTensor, World

if TYPE_CHECKING:
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
        """Nothing else in the spec may ask for a checkpoint."""
        asked = {"every_steps": self.every_steps, "every_minutes": self.every_minutes, "at_end": self.at_end or None}
        for name, value in asked.items():
            if value is not None:
                rule = f"{name}={value}, but checkpoint=none never saves. Drop it, or choose checkpoint=sharded."
                yield Fault(key=f"checkpoint.{name}", message=rule)
        if spec.run.stop_at_step is not None:
            rule = f"stop_at_step={spec.run.stop_at_step} ends with a commit. Drop it, or choose checkpoint=sharded."
            yield Fault(key="run.stop_at_step", message=rule)

    def open(self, run_dir: Path, world: World) -> "ReadOnlyCheckpointer":
        """For this run's directory, which is left as it is."""
        return ReadOnlyCheckpointer(RunDir(run_dir).checkpoints, world)


@final
class ReadOnlyCheckpointer:
    """Restores what was saved before and saves nothing. All methods are collective."""

    def __init__(self, checkpoints: Path, world: World) -> None:
        self._committed = Committed(checkpoints, world)

    def save(self, state: State, *, progress: Progress, metrics: Mapping[str, float]) -> None:
        """Nothing."""

    def poll(self, state: Callable[[], State]) -> None:
        """Nothing."""

    def latest(self) -> Path | None:
        """The newest checkpoint that an earlier attempt committed, or None.

        Raises:
            CheckpointError: it is corrupted; names the file and the next older commit.
        """
        return self._committed.latest()

    def stored(self, path: Path) -> Mapping[str, StoredTensor]:
        """Shape and type of the tensors held, by name.

        Raises:
            CheckpointError: the checkpoint is corrupted.
        """
        return self._committed.stored(path)

    def load(self, path: Path, state: State) -> None:
        """Fill the state's tensors in place and replace its values.

        Raises:
            CheckpointError: it does not fit this state, or is corrupted.
        """
        self._committed.load(path, state)

    def close(self) -> None:
        """Nothing is under way."""
