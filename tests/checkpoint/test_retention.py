"""Which checkpoints stay, and that none goes before a newer one is committed."""

import math
from pathlib import Path

import pytest
import torch

from runner.checkpoint.retention import Mode, Retention
from runner.checkpoint.sharded import Sharded
from runner.errors import CheckpointError
from runner.protocols import Progress, State
from runner.storage.format import Manifest
from runner.world.solo import SoloWorld
from tests.storage.states import state_of


def found(*losses: float | None) -> dict[Path, Manifest | CheckpointError]:
    """Checkpoints with these losses, the newest first; None = not evaluated."""
    commits: dict[Path, Manifest | CheckpointError] = {}
    for step, loss in reversed(list(enumerate(losses))):
        metrics = {} if loss is None else {"loss": loss}
        one = Manifest(step=step, position=0, world_size=1, serial=step, metrics=metrics, files={})
        commits[Path(f"step_{step}")] = one
    return commits


def dropped(commits: dict[Path, Manifest | CheckpointError], last: int, best: int, mode: Mode = Mode.min) -> set[str]:
    retention = Retention(keep_last=last, keep_best=best, metric="loss", mode=mode)
    return {path.name for path in retention.superfluous(commits)}


def test_the_newest_stay() -> None:
    assert dropped(found(5, 4, 3, 2), 2, 0) == {"step_0", "step_1"}


def test_the_best_stay_besides() -> None:
    assert dropped(found(1, 4, 3, 2), 1, 1) == {"step_1", "step_2"}
    assert dropped(found(1, 4, 3, 2), 1, 1, Mode.max) == {"step_0", "step_2"}


def test_what_was_not_measured_is_not_among_the_best() -> None:
    assert dropped(found(None, math.nan, 3, 2, 9), 1, 1) == {"step_0", "step_1", "step_2"}


def test_what_cannot_be_read_stays() -> None:
    commits = {Path("step_9"): CheckpointError("unreadable"), **found(3, 2)}
    assert dropped(commits, 1, 0) == {"step_0"}


def names(path: Path) -> set[str]:
    return {one.name for one in (path / "checkpoints").iterdir()}


def test_saving_drops_older_ones_but_the_best(tmp_path: Path, world: SoloWorld) -> None:
    checkpointer = Sharded(retention=Retention(keep_last=1, keep_best=1)).open(tmp_path, world)
    for step, loss in enumerate([3.0, 1.0, 2.0, 4.0]):
        checkpointer.save(State(), progress=Progress(step=step, position=0), metrics={"eval/loss": loss})
    assert names(tmp_path) == {"step_1", "step_3"}


def test_nothing_is_dropped_when_the_newer_one_fails(tmp_path: Path, world: SoloWorld) -> None:
    checkpointer = Sharded(retention=Retention(keep_last=1)).open(tmp_path, world)
    checkpointer.save(State(), progress=Progress(step=1, position=0), metrics={})
    bad = state_of({"model.z": torch.ones(1, dtype=torch.complex128)})
    with pytest.raises(CheckpointError, match="complex128"):
        checkpointer.save(bad, progress=Progress(step=2, position=0), metrics={})
    assert names(tmp_path) == {"step_1"}


def test_a_metric_that_is_never_measured_is_an_error_once_others_are(tmp_path: Path, world: SoloWorld) -> None:
    checkpointer = Sharded(retention=Retention(keep_best=1, metric="eval/acuracy", mode=Mode.max)).open(tmp_path, world)
    checkpointer.save(State(), progress=Progress(step=1, position=0), metrics={"train/loss": 1.0})  # nothing yet
    metrics = {"eval/loss": 1.0, "eval/accuracy": 0.5}
    with pytest.raises(CheckpointError) as caught:
        checkpointer.save(State(), progress=Progress(step=2, position=0), metrics=metrics)
    assert str(caught.value) == (
        "checkpoint.metric=eval/acuracy was not measured, but keep_best compares it. "
        "Set it to one of eval/accuracy, eval/loss. The checkpoint is committed."
    )
    assert names(tmp_path) == {"step_1", "step_2"}
