"""Every rank writes its own share; rank 0 commits. A checkpoint resumes under any strategy and number of ranks."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, final

from runner.checkpoint.agree import on_main
from runner.checkpoint.commit import begin, commit, discard, drop, recover
from runner.checkpoint.format import METADATA, STATE, Described, File, Manifest, encode_metadata, encode_state
from runner.checkpoint.history import last_serial, manifests
from runner.checkpoint.restore import Committed
from runner.checkpoint.retention import Mode, superfluous
from runner.errors import CheckpointError, Fault
from runner.protocols import Progress, State, Stored, World
from runner.spec.run_dir import RunDir

if TYPE_CHECKING:
    from runner.spec.run_spec import RunSpec


@final
@dataclass(frozen=True, kw_only=True)
class Sharded:
    """Save into <run>/checkpoints/step_<n>, one safetensors file per rank, each checkpoint committed by one rename."""

    every_steps: int | None = 500
    """Optimizer steps between checkpoints; null = off."""
    every_minutes: float | None = None
    """Minutes between checkpoints, beside every_steps; null = off."""
    at_end: bool = True
    """Save when the run ends."""
    keep_last: int | None = 3
    """How many of the newest checkpoints stay; null = all."""
    keep_best: int = 0
    """How many of the best by `metric` stay besides; 0 = off."""
    metric: str = "eval/loss"
    """What keep_best goes by, as it stands in metrics.jsonl."""
    mode: Mode = Mode.min
    """Which way `metric` gets better."""

    def __post_init__(self) -> None:
        if self.every_steps is not None and self.every_steps < 1:
            raise ValueError(f"every_steps={self.every_steps} must be at least 1, or null for off.")
        if self.every_minutes is not None and not self.every_minutes > 0:
            raise ValueError(f"every_minutes={self.every_minutes} must be above 0, or null for off.")
        if self.keep_last is not None and self.keep_last < 1:
            raise ValueError(f"keep_last={self.keep_last} must be at least 1, or null to keep all.")
        if self.keep_best < 0:
            raise ValueError(f"keep_best={self.keep_best} must be at least 0.")

    def check(self, spec: "RunSpec") -> Iterable[Fault]:
        """The best can only be known where something is evaluated."""
        if self.keep_best and spec.eval.every_steps is None and not spec.eval.at_end:
            rule = (
                f"keep_best={self.keep_best} needs {self.metric}, but this run never evaluates. Set eval.every_steps."
            )
            yield Fault(key="checkpoint.keep_best", message=rule)

    def open(self, run_dir: Path, world: World) -> "ShardedCheckpointer":
        """For this run's directory; removes what a killed attempt left half written. Collective."""
        checkpoints = RunDir(run_dir).checkpoints

        def prepare() -> None:
            checkpoints.mkdir(parents=True, exist_ok=True)
            recover(checkpoints)

        on_main(world, prepare, path=checkpoints)
        return ShardedCheckpointer(checkpoints, self, world)


@final
class ShardedCheckpointer:
    """Saves and restores for one run. All methods are collective."""

    def __init__(self, checkpoints: Path, part: Sharded, world: World) -> None:
        self._checkpoints = checkpoints
        self._part = part
        self._world = world
        self._committed = Committed(checkpoints, world)

    def save(self, state: State, *, progress: Progress, metrics: Mapping[str, float]) -> None:
        """Commit, then drop what retention does not keep.

        Raises:
            CheckpointError: it could not be written; the last commit stands as it was. Or it was, but `metrics` has
                other evaluations than the one that keep_best goes by.
        """
        from runner.checkpoint.transfer import write_tensors

        world = self._world
        partial = on_main(world, lambda: begin(self._checkpoints, progress.step), path=self._checkpoints)
        try:
            described, payloads = write_tensors(world, partial, state.tensors)
            written = _Written(state, described, payloads, progress, metrics)
            on_main(world, lambda: self._commit(partial, written), path=partial)
        except CheckpointError:
            on_main(world, lambda: discard(partial), path=partial)
            raise
        on_main(world, lambda: self._retain(metrics), path=self._checkpoints)

    def latest(self) -> Path | None:
        """The newest committed checkpoint.

        Raises:
            CheckpointError: it is corrupted; names the file and the next older commit.
        """
        return self._committed.latest()

    def stored(self, path: Path) -> Mapping[str, Stored]:
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
        """Nothing is under way: a save is on the disk when it returns."""

    def _commit(self, partial: Path, written: "_Written") -> None:
        progress, metrics = written.progress, dict(written.metrics)
        manifest = Manifest(
            step=progress.step,
            position=progress.position,
            world_size=self._world.size,
            serial=last_serial(manifests(self._checkpoints)) + 1,
            metrics=metrics,
            files=written.payloads,
        )
        state = {"values": written.state.values, "progress": vars(progress), "metrics": metrics}
        commit(partial, manifest, {STATE: encode_state(state), METADATA: encode_metadata(written.described)})

    def _retain(self, metrics: Mapping[str, float]) -> None:
        part = self._part
        found = manifests(self._checkpoints)
        keep_last = len(found) if part.keep_last is None else part.keep_last
        for path in superfluous(found, keep_last, keep_best=part.keep_best, metric=part.metric, mode=part.mode):
            drop(path)
        alike = sorted(name for name in metrics if name.partition("/")[0] == part.metric.partition("/")[0])
        if part.keep_best and alike and part.metric not in metrics:
            rule = f"keep_best goes by it; there are {', '.join(alike)}. The checkpoint is committed."
            raise CheckpointError(f"checkpoint.metric={part.metric} was not measured, but {rule}")


class _Written(NamedTuple):
    """What of a checkpoint is known once the payload is on the disk."""

    state: State
    described: Mapping[str, Described]
    payloads: Mapping[str, File]
    progress: Progress
    metrics: Mapping[str, float]
