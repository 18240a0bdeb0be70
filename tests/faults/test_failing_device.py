"""A device that answers EIO: under a checkpoint, under the whole run, and on reading what was written."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from runner.config.run_dir import RunDir
from tests.conftest import Ended
from tests.faults.conftest import Btrfs, FailingDevice, go_down

FAILING = '''
"""A loss whose first rank makes a file system go down at one call."""

import itertools
import os
from pathlib import Path

from tests.faults.conftest import go_down
from user_hooks.points import compute_loss

CALLS = itertools.count(1)


def loss(model, batch, path="", call=5):
    if next(CALLS) == call and path and os.environ.get("RANK", "0") == "0":
        go_down(Path(path))
    return compute_loss(model, batch)
'''
HOOK = ["loss._target_=user_hooks.failing.loss", "eval.every_steps=null"]
WHOLE = ["loss.path=''", "--allow", "loss"]
PAIR = ["strategy=ddp", "hardware.processes=2"]
SYNCHRONOUS, ASYNCHRONOUS = "checkpoint.asynchronous=false", "checkpoint.asynchronous=true"


@pytest.fixture(autouse=True)
def failing_hook(project: Path) -> None:
    (project / "user_hooks" / "failing.py").write_text(FAILING)


@pytest.fixture(scope="module")
def trained() -> dict[tuple[str, ...], list[float]]:
    """The losses of runs that have been trained already, by what they were told."""
    return {}


@pytest.fixture
def undisturbed(
    runner: Callable[..., Ended], trained: dict[tuple[str, ...], list[float]]
) -> Callable[..., list[float]]:
    """The losses of a run of ten steps on a disk that is whole."""

    def train(*words: str) -> list[float]:
        if words not in trained:
            trained[words] = losses(runner("train", "points", "eval.every_steps=null", *words).run_dir)
        return trained[words]

    return train


def losses(run_dir: RunDir) -> list[float]:
    """That of each step, in order."""
    records = [json.loads(line) for line in run_dir.metrics.read_text().splitlines()]
    found = {record["step"]: record["train/loss"] for record in records if "train/loss" in record}
    assert list(found) == list(range(1, 11))
    return list(found.values())


def cause(ended: Ended) -> str:
    """The sentence that says why the run ended, which no traceback follows."""
    assert "Traceback" not in ended.stderr
    (line,) = [line for line in ended.stderr.splitlines() if line.startswith("rank ")]
    return line


@pytest.mark.fault(
    "A device that answers EIO while a checkpoint is written.",
    "The run fails with exit code 8, names the file, and keeps its last checkpoint.",
)
@pytest.mark.parametrize(
    ("placed", "saving"),
    [
        ([], SYNCHRONOUS),
        (PAIR, ASYNCHRONOUS),
        pytest.param([], ASYNCHRONOUS, marks=pytest.mark.exhaustive),
        pytest.param(PAIR, SYNCHRONOUS, marks=pytest.mark.exhaustive),
        pytest.param(PAIR, "checkpoint=full", marks=pytest.mark.exhaustive),
    ],
    ids=["single", "ddp in the background", "single in the background", "ddp", "ddp in one file"],
)
def test_a_checkpoint_on_a_device_that_fails(
    runner: Callable[..., Ended],
    failing_device: FailingDevice,
    undisturbed: Callable[..., list[float]],
    tmp_path: Path,
    placed: list[str],
    saving: str,
) -> None:
    """The checkpoints are on a device of their own: the rest of the run's directory takes the report of it."""
    run_dir = RunDir(tmp_path / "run")
    hook = [*HOOK, f"+loss.path={failing_device.below}", "+loss.call=6", "checkpoint.every_steps=3"]
    runner("train", "points", f"run.dir={run_dir.path}", *hook, saving, *placed, "run.stop_at_step=1")
    failing_device.mount()
    shutil.copytree(run_dir.checkpoints, failing_device.path, dirs_exist_ok=True)
    failing_device.move(run_dir.checkpoints)

    ended = runner("resume", str(run_dir.path), code=8)
    # In the background, step 6 may be on the disk by then or not. After one rank's EIO, ext4 is read-only for another.
    told = re.search(
        rf"(?<=CheckpointError: )cannot write the checkpoint: {run_dir.checkpoints}/step_([69])\.partial-\w+"
        r".*: (Input/output error\. Repair that file system|Read-only file system\.)",
        cause(ended),
    )
    assert told, ended.stderr
    assert placed or "rank_0.safetensors: Input/output error" in told[0]
    committed = [step for step in (1, 3, 6) if step < int(told[1])]
    assert ended.stderr.endswith(f"To continue from the last checkpoint: runner resume {run_dir.path}\n")
    assert run_dir.read_status()["state"] == "failed"
    assert told[0] in " ".join(json.loads(report.read_text())["message"] for report in run_dir.failures.iterdir())

    failing_device.mend()
    assert run_dir.committed_steps() == committed
    resumed = runner("resume", str(run_dir.path), *WHOLE)
    assert f"continuing after step {committed[-1]}" in resumed.stderr
    assert not list(run_dir.path.rglob("*.partial-*"))
    assert losses(run_dir) == undisturbed(*placed)


@pytest.mark.fault(
    "A device that answers EIO under the whole directory of a run.",
    "The terminal names the file and the error; once the device is whole, the run continues to the same losses.",
)
@pytest.mark.parametrize(
    ("placed", "down"),
    [
        ([], False),
        (PAIR, True),
        pytest.param([], True, marks=pytest.mark.exhaustive),
        pytest.param(PAIR, False, marks=pytest.mark.exhaustive),
    ],
    ids=["flushing", "down, ddp", "down", "flushing, ddp"],
)
def test_a_run_on_a_device_that_fails(
    runner: Callable[..., Ended],
    failing_device: FailingDevice,
    undisturbed: Callable[..., list[float]],
    placed: list[str],
    down: bool,
) -> None:
    """With `down`, the file system gives up: nothing can be read. Without, writing fails only when it is flushed."""
    failing_device.mount()
    run_dir = RunDir(failing_device.path / "run")
    path = failing_device.path if down else failing_device.below
    hook = [*HOOK, f"+loss.path={path}", "+loss.call=5", "checkpoint.every_steps=3"]
    ended = runner("train", "points", f"run.dir={run_dir.path}", *hook, *placed, code=12)
    assert f"DiskError: cannot write {run_dir.metrics}: Input/output error. Once that is mended" in cause(ended)
    assert f"{run_dir.status} cannot be " in ended.stderr
    assert "Input/output error. The run's state is: failed." in ended.stderr
    assert ended.stderr.endswith(f"runner resume {run_dir.path}\n")
    assert ended.run_dir == run_dir

    failing_device.mend()
    assert run_dir.committed_steps() == [3]
    resumed = runner("resume", str(run_dir.path), *WHOLE)
    assert "continuing after step 3" in resumed.stderr
    assert "has gone without reporting an end" in resumed.stderr
    assert run_dir.read_status() == {**run_dir.read_status(), "state": "done", "step": 10}
    assert losses(run_dir) == undisturbed(*placed)


@pytest.mark.fault(
    "A device that answers EIO when an attempt begins.",
    "The attempt is refused with exit code 12 and names the file; nothing is lost.",
)
def test_an_attempt_on_a_device_that_fails(runner: Callable[..., Ended], failing_device: FailingDevice) -> None:
    failing_device.mount()
    run_dir = RunDir(failing_device.path / "run")
    runner("train", "points", f"run.dir={run_dir.path}", "run.stop_at_step=4")
    failing_device.fail()
    for words in (["resume", str(run_dir.path)], ["train", "points", f"run.dir={failing_device.path / 'new'}"]):
        refused = runner(*words, code=12)
        *_, last = refused.stderr.splitlines()
        assert last.startswith(f"cannot write {failing_device.path}/")
        assert last.endswith("/run.lock: Input/output error.")
        assert "Traceback" not in refused.stderr
    failing_device.mend()
    go_down(failing_device.path)
    *_, last = runner("resume", str(run_dir.path), code=12).stderr.splitlines()
    assert last == f"cannot open {run_dir.lock}: Input/output error."
    failing_device.mend()
    assert "continuing after step 4" in runner("resume", str(run_dir.path)).stderr


@pytest.mark.fault(
    "A checkpoint whose blocks can no longer be read (EIO).",
    "The resume fails with exit code 8, names the file and an older checkpoint that is whole.",
)
def test_a_checkpoint_that_cannot_be_read(
    runner: Callable[..., Ended], btrfs: Btrfs, undisturbed: Callable[..., list[float]]
) -> None:
    run_dir = RunDir(btrfs.path / "run")
    argv = ["eval.every_steps=null", "checkpoint.every_steps=2", "run.stop_at_step=6"]
    runner("train", "points", f"run.dir={run_dir.path}", *argv)
    payload, manifest = (run_dir.checkpoints / "step_6" / name for name in ("rank_0.safetensors", "manifest.json"))
    for file in (payload, manifest):
        btrfs.spoil(file)
        told = runner("resume", str(run_dir.path), code=8)
        assert f"CheckpointError: {file} cannot be read: Input/output error. An older checkpoint is intact" in (
            cause(told)
        )
        assert told.stderr.endswith(f"To continue from that one: runner resume {run_dir.path} --from step_4\n")
        assert run_dir.read_status()["state"] == "failed"
        btrfs.mend()

    btrfs.spoil(*(run_dir.checkpoints / f"step_{step}" / payload.name for step in run_dir.committed_steps()))
    told = runner("resume", str(run_dir.path), code=8)
    assert (
        f"{payload} cannot be read: Input/output error. No older checkpoint is intact. Once it can be read again"
        in (cause(told))
    )
    assert told.stderr.endswith(f"runner resume {run_dir.path}\n")
    btrfs.mend()

    assert "continuing after step 6" in runner("resume", str(run_dir.path)).stderr
    assert losses(run_dir) == undisturbed()


@pytest.mark.fault(
    "A file of a run's directory that can no longer be read (EIO).",
    "The resume is refused with exit code 12 and names the file, which it does not replace.",
)
@pytest.mark.parametrize(
    "names",
    [
        ["metrics.jsonl", "status.json"],
        pytest.param(["spec.yaml", "provenance.json", "run_id", "run.lock"], marks=pytest.mark.exhaustive),
    ],
    ids=["what an attempt writes", "the others"],
)
def test_a_file_that_cannot_be_read(runner: Callable[..., Ended], btrfs: Btrfs, names: list[str]) -> None:
    run_dir = RunDir(btrfs.path / "run")
    runner("train", "points", f"run.dir={run_dir.path}", "run.stop_at_step=4")
    for name in names:
        content = (run_dir.path / name).read_bytes()
        btrfs.spoil(run_dir.path / name)
        *_, last = runner("resume", str(run_dir.path), code=12).stderr.splitlines()
        assert last == f"{run_dir.path / name} cannot be read: Input/output error."
        btrfs.mend()
        assert (run_dir.path / name).read_bytes() == content
    assert "continuing after step 4" in runner("resume", str(run_dir.path)).stderr
