"""What every way of saving shares: opened, committed, retained."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from runner.checkpoint.retention import Mode, superfluous
from runner.config.run_dir import RunDir
from runner.errors import CheckpointError
from runner.protocols import Progress, World
from runner.storage.commit import begin, commit, discard, drop, recover
from runner.storage.format import METADATA, STATE, Described, File, Manifest, encode_metadata, encode_state
from runner.storage.history import last_serial, manifests
from runner.storage.rank0 import on_rank_0

Written = tuple[Mapping[str, Described], Mapping[str, File]]
"""What the checkpoint holds (rank 0; empty on the others), and every payload file."""


class Keep(NamedTuple):
    """Which checkpoints stay: see the parts."""

    last: int | None
    best: int
    metric: str
    mode: Mode


@dataclass(frozen=True, kw_only=True)
class Saved:
    """What a checkpoint holds beside its tensors."""

    values: Mapping[str, Any]
    progress: Progress
    metrics: Mapping[str, float]


def check_numbers(
    *, every_steps: int | None, every_minutes: float | None, keep_last: int | None, keep_best: int
) -> None:
    """Hold the numbers of a part to their ranges.

    Raises:
        ValueError: one is out of its range.
    """
    if every_steps is not None and every_steps < 1:
        raise ValueError(f"every_steps={every_steps} must be at least 1, or null for off.")
    if every_minutes is not None and not every_minutes > 0:
        raise ValueError(f"every_minutes={every_minutes} must be above 0, or null for off.")
    if keep_last is not None and keep_last < 1:
        raise ValueError(f"keep_last={keep_last} must be at least 1, or null to keep all.")
    if keep_best < 0:
        raise ValueError(f"keep_best={keep_best} must be at least 0.")


def open_checkpoints(run_dir: Path, world: World) -> Path:
    """The run's directory of checkpoints, without what a killed attempt left half written. Collective."""
    checkpoints = RunDir(run_dir).checkpoints

    def prepare() -> None:
        checkpoints.mkdir(parents=True, exist_ok=True)
        recover(checkpoints)

    on_rank_0(world, prepare, path=checkpoints)
    return checkpoints


def save_into(
    checkpoints: Path, world: World, saved: Saved, keep: Keep, *, write: Callable[[World, Path], Written]
) -> None:
    """Write a checkpoint, commit it, then drop what is not to be kept. Collective.

    Args:
        write: writes the tensors into the directory that it is given. Collective.

    Raises:
        CheckpointError: it could not be written; the last commit stands as it was. Or it was, but `metrics` has other
            evaluations than the one that keep_best goes by.
    """
    partial = on_rank_0(world, lambda: begin(checkpoints, saved.progress.step), path=checkpoints)
    try:
        described, payloads = write(world, partial)
        on_rank_0(world, lambda: _commit(partial, world.size, saved, described, payloads), path=partial)
    except CheckpointError:
        on_rank_0(world, lambda: discard(partial), path=partial)
        raise
    on_rank_0(world, lambda: _retain(checkpoints, saved.metrics, keep), path=checkpoints)


def _commit(
    partial: Path, world_size: int, saved: Saved, described: Mapping[str, Described], payloads: Mapping[str, File]
) -> None:
    progress, metrics = saved.progress, dict(saved.metrics)
    manifest = Manifest(
        step=progress.step,
        position=progress.position,
        world_size=world_size,
        serial=last_serial(manifests(partial.parent)) + 1,
        metrics=metrics,
        files=payloads,
    )
    state = {"values": saved.values, "progress": vars(progress), "metrics": metrics}
    commit(partial, manifest, {STATE: encode_state(state), METADATA: encode_metadata(described)})


def _retain(checkpoints: Path, metrics: Mapping[str, float], keep: Keep) -> None:
    found = manifests(checkpoints)
    keep_last = len(found) if keep.last is None else keep.last
    for path in superfluous(found, keep_last, keep_best=keep.best, metric=keep.metric, mode=keep.mode):
        drop(path)
    alike = sorted(name for name in metrics if name.partition("/")[0] == keep.metric.partition("/")[0])
    if keep.best and alike and keep.metric not in metrics:
        rule = f"keep_best goes by it; there are {', '.join(alike)}. The checkpoint is committed."
        raise CheckpointError(f"checkpoint.metric={keep.metric} was not measured, but {rule}")
