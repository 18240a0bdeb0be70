"""A checkpoint is committed or it is not there: whatever kills a save, whenever, the last commit loads."""

import errno
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from runner.checkpoint.sharded import Sharded, ShardedCheckpointer
from runner.errors import CheckpointError
from runner.protocols import Progress, State
from runner.storage.checkpoints import Checkpoints
from runner.storage.commit import commit
from runner.storage.format import File, Manifest
from runner.storage.rank0 import write_error
from runner.world.solo import SoloWorld
from tests.faults.conftest import Disk
from tests.storage.states import open_latest, state_of

Save = Callable[..., Path]


@pytest.mark.fault("SIGKILL in the middle of a save", "the last commit loads")
@pytest.mark.parametrize(
    "when",
    [
        "each_operation",
        "replacing",
        *(pytest.param(one, marks=pytest.mark.exhaustive) for one in ("background", "random")),
    ],
)
def test_a_killed_save_leaves_the_last_commit_loadable(when: str, tmp_path: Path) -> None:
    """SIGKILL before each file system operation of a save in turn, or twenty times at a random moment."""
    command = [sys.executable, str(Path(__file__).with_name("killed.py")), when, str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, check=False, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(done.stdout.split()[0]) >= 15, done.stdout  # so many saves were killed


@pytest.mark.fault("partial files of a killed save", "the next attempt removes them")
def test_leftovers_are_removed_when_the_run_is_opened(tmp_path: Path, save: Save, world: SoloWorld) -> None:
    path = save(1)
    (path.parent / "step_2.partial-0a1b2c3d").mkdir()
    (path.parent / "step_2.partial-0a1b2c3d" / "rank_0.safetensors").write_bytes(b"half")
    Sharded().open(tmp_path, world)
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.fault("SIGKILL between the two renames of a replaced checkpoint", "the older one comes back")
def test_a_commit_that_was_stepping_aside_comes_back(
    tmp_path: Path, save: Save, world: SoloWorld, blank: State[Tensor]
) -> None:
    path = save(1)
    path.rename(path.with_name("step_1.replaced-0a1b2c3d"))
    Sharded().open(tmp_path, world)
    saved = open_latest(tmp_path, world)
    assert saved.path == path
    saved.read(blank)
    assert list(path.parent.iterdir()) == [path]


@pytest.fixture
def no_large_files() -> Iterator[None]:
    """No file may grow above 1 MB: writing more fails as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.fault("a limit on the size of files (EFBIG) in a save", "the last commit loads")
@pytest.mark.usefixtures("no_large_files")
def test_a_file_that_may_not_grow_leaves_the_last_commit(
    checkpointer: ShardedCheckpointer, checkpoints: Checkpoints, save: Save, blank: State[Tensor]
) -> None:
    path = save(1)
    with pytest.raises(CheckpointError) as caught:
        checkpointer.save(large(), progress=Progress(step=2, position=0), metrics={})
    message = str(caught.value)
    assert message.startswith(f"cannot write the checkpoint: {path.parent}/step_2.partial-")
    assert message.endswith(
        "File too large. Free space there, or keep fewer checkpoints: checkpoint.keep_last, checkpoint.keep_best."
    )
    assert list(path.parent.iterdir()) == [path]  # what was half written gave its space back
    assert checkpoints.latest() == path
    checkpoints.open(path).read(blank)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = shutil.which("mount")
    options = ["-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)]
    if mount is None or subprocess.run([mount, *options], check=False, capture_output=True).returncode:
        pytest.skip("this user may not mount a file system")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.fault("a disk that fills up in a save", "the last commit loads")
def test_a_full_disk_leaves_the_last_commit(small_disk: Path, world: SoloWorld) -> None:
    checkpointer = Sharded().open(small_disk, world)
    checkpointer.save(State(values={"step": 1}), progress=Progress(step=1, position=0), metrics={})
    with pytest.raises(CheckpointError, match=r"No space left on device. Free space there, or keep fewer checkpoints"):
        checkpointer.save(large(), progress=Progress(step=2, position=0), metrics={})
    saved = open_latest(small_disk, world)
    assert saved.path == small_disk / "checkpoints" / "step_1"
    state = State[Tensor]()
    saved.read(state)
    assert state.values == {"step": 1}
    checkpointer.save(State(), progress=Progress(step=3, position=0), metrics={})  # there is room again


def test_a_commit_that_cannot_be_noted_is_one_all_the_same(
    small_disk: Path, tmp_path: Path, world: SoloWorld, caplog: pytest.LogCaptureFixture
) -> None:
    """The checkpoints are on another disk."""
    (tmp_path / "elsewhere").mkdir()
    (small_disk / "checkpoints").symlink_to(tmp_path / "elsewhere")
    Disk(small_disk).fill()
    Sharded().open(small_disk, world).save(State(), progress=Progress(step=1, position=0), metrics={})
    assert open_latest(small_disk, world).path.name == "step_1"
    assert f"step_1 is committed. A resume would not miss it if it were lost: {small_disk}/provenance.json" in (
        caplog.text
    )


def test_a_directory_that_cannot_be_made_is_said(tmp_path: Path, world: SoloWorld) -> None:
    (tmp_path / "checkpoints").write_text("a file stands here")
    with pytest.raises(CheckpointError, match=rf"{tmp_path}/checkpoints: File exists. Repair that file system"):
        Sharded().open(tmp_path, world)


def test_a_directory_that_may_not_be_written_is_said(tmp_path: Path) -> None:
    error = write_error(PermissionError(errno.EACCES, "Permission denied"), tmp_path)
    way_out = "Give this user permission to write there, or choose another directory: run.dir."
    assert str(error) == f"cannot write the checkpoint: {tmp_path}: Permission denied. {way_out}"


@pytest.mark.fault("a rank's files that rank 0 cannot see", "nothing is committed")
def test_a_payload_that_rank_0_cannot_see_is_not_committed(tmp_path: Path) -> None:
    partial = tmp_path / "step_1.partial-0"
    partial.mkdir()
    files = {"rank_1.safetensors": File(bytes=8, xxh3_128="")}
    manifest = Manifest(step=1, position=0, world_size=2, serial=1, metrics={}, files=files)
    with pytest.raises(CheckpointError, match=r"rank_1.safetensors is missing. Every node must see the same directory"):
        commit(partial, manifest, {})
    assert list(tmp_path.iterdir()) == [partial]


def large() -> State[Tensor]:
    """4 MB."""
    return state_of({"model.w": torch.zeros(1_000_000)})
