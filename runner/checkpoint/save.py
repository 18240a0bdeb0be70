"""What all options that save share: opening the directory, committing, deleting what is not kept."""

import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from runner.checkpoint.retention import Retention
from runner.config import provenance
from runner.config.run_dir import RunDir
from runner.errors import CheckpointError
from runner.protocols import Progress, World
from runner.storage.commit import begin, commit, discard, drop, recover
from runner.storage.format import METADATA, STATE, File, Manifest, TensorMetadata, encode_metadata, encode_state
from runner.storage.history import History, last_serial
from runner.storage.rank0 import on_rank_0

logger = logging.getLogger(__name__)
SHARED = re.compile(r".+\.frozen\.safetensors")
"""The names of payload files that a later checkpoint may have in common with an earlier one."""
Written = tuple[Mapping[str, TensorMetadata], Mapping[str, File]]
"""The metadata of all tensors (empty on ranks other than 0), and every payload file by name."""


class Earlier(NamedTuple):
    """The newest committed checkpoint, as a later one may link to its files."""

    directory: Path
    files: Mapping[str, File]
    """Its shared files, by name."""


@dataclass(frozen=True, kw_only=True)
class SaveMetadata:
    """What a checkpoint holds besides tensors."""

    values: Mapping[str, Any]
    progress: Progress
    metrics: Mapping[str, float]


def check_cadence(*, every_steps: int | None, every_minutes: float | None) -> None:
    """Check how often a part saves.

    Raises:
        ValueError: a value is out of range.
    """
    if every_steps is not None and every_steps < 1:
        raise ValueError(f"every_steps={every_steps} must be at least 1, or null for off.")
    if every_minutes is not None and not every_minutes > 0:
        raise ValueError(f"every_minutes={every_minutes} must be above 0, or null for off.")


def open_checkpoints(run_dir: Path, world: World) -> History:
    """The run's checkpoints, rid of what a killed attempt left behind. Collective."""
    checkpoints = RunDir(run_dir).checkpoints

    def prepare() -> None:
        checkpoints.mkdir(parents=True, exist_ok=True)
        recover(checkpoints)

    on_rank_0(world, prepare, path=checkpoints)
    return History(checkpoints)


def save_into(
    history: History,
    world: World,
    saved: SaveMetadata,
    retention: Retention,
    *,
    write: Callable[[World, Path, Earlier], Written],
) -> None:
    """Write a checkpoint, commit it, then delete those that retention does not keep. Collective.

    Args:
        write: writes the tensors into the directory that it is given, or links to files of the earlier checkpoint.
            Collective.

    Raises:
        CheckpointError: the checkpoint could not be written, and the newest one is still there; or it is committed, but
            the evaluation did not measure the metric that keep_best compares.
    """
    checkpoints = history.checkpoints
    begun = on_rank_0(world, lambda: (begin(checkpoints, saved.progress.step), _earlier(history)), path=checkpoints)
    partial, earlier = begun
    try:
        metadata, payloads = write(world, partial, earlier)
        on_rank_0(world, lambda: _commit(history, partial, world.size, saved, metadata, payloads), path=partial)
    except CheckpointError:
        on_rank_0(world, lambda: discard(partial), path=partial)
        raise
    on_rank_0(world, lambda: _retain(history, saved.metrics, retention), path=checkpoints)


def _earlier(history: History) -> Earlier:
    for path, manifest in history.manifests().items():
        if isinstance(manifest, Manifest):
            return Earlier(path, {name: file for name, file in manifest.files.items() if SHARED.fullmatch(name)})
    return Earlier(history.checkpoints, {})


def _commit(
    history: History,
    partial: Path,
    world_size: int,
    saved: SaveMetadata,
    metadata: Mapping[str, TensorMetadata],
    payloads: Mapping[str, File],
) -> None:
    progress, metrics = saved.progress, dict(saved.metrics)
    manifest = Manifest(
        step=progress.step,
        position=progress.position,
        world_size=world_size,
        serial=last_serial(history.manifests()) + 1,
        metrics=metrics,
        files=payloads,
    )
    state = {"values": saved.values, "progress": vars(progress), "metrics": metrics}
    commit(partial, manifest, {STATE: encode_state(state), METADATA: encode_metadata(metadata)})
    _note(RunDir(partial.parent.parent), progress.step)


def _note(run_dir: RunDir, step: int) -> None:
    """Note the commit outside the directory of checkpoints: if that is ever lost, a resume knows that it was."""
    try:
        provenance.note_commit(run_dir.provenance, step)
    except OSError as error:
        cause = f"{run_dir.provenance} cannot be written: {error.strerror}"
        logger.warning("step_%d is committed. A resume would not miss it if it were lost: %s.", step, cause)


def _retain(history: History, metrics: Mapping[str, float], retention: Retention) -> None:
    for path in retention.superfluous(history.manifests()):
        drop(path)
    metric = retention.metric
    measured = sorted(name for name in metrics if name.partition("/")[0] == metric.partition("/")[0])
    if retention.keep_best and measured and metric not in metrics:
        rule = f"Set it to one of {', '.join(measured)}. The checkpoint is committed."
        raise CheckpointError(f"checkpoint.metric={metric} was not measured, but keep_best compares it. {rule}")
