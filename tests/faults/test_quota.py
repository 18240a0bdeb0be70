"""A quota that is used up, before an attempt or in the middle of one: the disk has room, but not for this run.

It is a quota of btrfs: EDQUOT from the kernel, also for root, who may exceed the quotas of users.
"""

import contextlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from runner.config.run_dir import RunDir
from tests.conftest import Ended
from tests.faults.conftest import Btrfs

FILLING = '''
"""A loss whose first rank uses up the quota at one call."""

import itertools
import os
from pathlib import Path

from tests.faults.test_quota import use_up
from user_hooks.points import compute_loss

CALLS = itertools.count(1)


def loss(model, batch, path="", call=5):
    if next(CALLS) == call and path and os.environ.get("RANK", "0") == "0":
        use_up(Path(path))
    return compute_loss(model, batch)
'''
HOOK = ["loss._target_=user_hooks.filling.loss", "+loss.call=5", "checkpoint.every_steps=3"]
PAIR = ["strategy=ddp", "hardware.processes=2"]
ALONE_OR_PAIR = pytest.mark.parametrize(
    "placed", [[], pytest.param(PAIR, marks=pytest.mark.exhaustive)], ids=["single", "ddp"]
)


def use_up(path: Path) -> None:
    """Write to a file until the quota is used up, to the last block."""
    with path.open("ab", buffering=0) as file:
        for size in (1 << 16, 1 << 12, 1):
            with contextlib.suppress(OSError):
                while file.write(bytes(size)) == size:
                    pass


def end_of(ended: Ended) -> tuple[str, str]:
    """The sentence that says why a run failed, and the last line."""
    assert "Traceback" not in ended.stderr
    *_, cause, traceback, logs, way_out = [line for line in ended.stderr.splitlines() if line.strip()]
    assert (traceback[:11], logs[:6]) == ("traceback: ", "logs: ")
    return cause, way_out


def losses(run_dir: RunDir) -> list[float]:
    """That of each step, in order."""
    records = [json.loads(line) for line in run_dir.metrics.read_text().splitlines()]
    found = {record["step"]: record["train/loss"] for record in records if "train/loss" in record}
    assert list(found) == list(range(1, 11))
    return list(found.values())


@pytest.mark.fault(
    "A quota that is used up in the middle of a run.",
    "The run fails with exit code 12, says so in status.json, and continues once there is room.",
)
@ALONE_OR_PAIR
def test_a_quota_that_is_used_up(project: Path, runner: Callable[..., Ended], btrfs: Btrfs, placed: list[str]) -> None:
    (project / "user_hooks" / "filling.py").write_text(FILLING)
    btrfs.limit(4)
    run_dir = RunDir(btrfs.path / "run")
    hook = [*HOOK, f"+loss.path={btrfs.path / 'filler'}"]
    cause, way_out = end_of(runner("train", "points", f"run.dir={run_dir.path}", *hook, *placed, code=12))
    assert f"DiskError: cannot write {run_dir.path}/" in cause
    assert "Disk quota exceeded. Once that is mended" in cause
    assert way_out == f"To continue from the last checkpoint: runner resume {run_dir.path}"
    assert run_dir.read_status()["state"] == "failed"
    assert run_dir.committed_steps() == [3]
    assert not list(run_dir.path.rglob("*.partial-*"))

    again = ["resume", str(run_dir.path), "loss.path=''", "--allow", "loss"]
    *_, refused = runner(*again, code=12).stderr.splitlines()
    assert refused.startswith(f"cannot begin the attempt: {run_dir.path}/")
    assert "Disk quota exceeded. Nothing has changed" in refused
    assert run_dir.read_status()["state"] == "failed"
    assert run_dir.specs() == [run_dir.spec]

    btrfs.limit(None)
    assert "continuing after step 3" in runner(*again).stderr
    assert run_dir.read_status() == {**run_dir.read_status(), "state": "done", "step": 10}
    assert losses(run_dir) == losses(runner("train", "points", *placed).run_dir)


@pytest.mark.fault(
    "A quota that has no room for another checkpoint.",
    "The run fails with exit code 8, leaves no part of that checkpoint, and continues from the one before.",
)
@ALONE_OR_PAIR
def test_a_quota_without_room_for_a_checkpoint(runner: Callable[..., Ended], btrfs: Btrfs, placed: list[str]) -> None:
    btrfs.limit(3)
    run_dir = RunDir(btrfs.path / "run")
    large = ["+model.width=20000", "checkpoint.every_steps=2"]  # of 1.2 MB each
    cause, way_out = end_of(runner("train", "points", f"run.dir={run_dir.path}", *large, *placed, code=8))
    assert f"CheckpointError: cannot write the checkpoint: {run_dir.checkpoints}/step_6.partial-" in cause
    assert "Disk quota exceeded. Free space there, or keep fewer checkpoints: checkpoint.keep_last" in cause
    assert way_out == f"To continue from the last checkpoint: runner resume {run_dir.path}"
    assert run_dir.read_status()["state"] == "failed"
    assert run_dir.committed_steps() == [2, 4]
    assert not list(run_dir.path.rglob("*.partial-*"))
    btrfs.limit(None)
    assert "continuing after step 4" in runner("resume", str(run_dir.path)).stderr
    assert losses(run_dir) == losses(runner("train", "points", *large, *placed).run_dir)
