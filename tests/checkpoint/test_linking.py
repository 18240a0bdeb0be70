"""Frozen parameters are written once and linked to afterwards; every checkpoint stays complete by itself."""

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from runner.checkpoint.retention import Retention
from runner.checkpoint.sharded import Sharded
from runner.errors import CheckpointError
from runner.protocols import Progress, State
from runner.storage.export import export_weights
from runner.storage.integrity import verify_everything
from runner.world.solo import SoloWorld
from tests.checkpoint.conftest import OnTwoRanks
from tests.storage.states import opened, state_of

FROZEN = "rank_0.frozen.safetensors"
TRAINED = "rank_0.safetensors"
ALL = Retention(keep_last=None)


def state_at(step: int, base: Tensor) -> State[Tensor]:
    """An adapter that is full of the step's number, on a frozen base."""
    state = state_of({"model.base": base, "model.adapter": torch.full((3,), float(step))})
    state.frozen = {"model": {"base"}}
    return state


@pytest.fixture(params=[False, True], ids=["at_once", "later"])
def save(request: pytest.FixtureRequest, tmp_path: Path, world: SoloWorld) -> Callable[..., Path]:
    """Save a base and an adapter with a checkpointer of its own, as a resumed run does; returns the directory."""

    def at_step(step: int, base: Tensor, *, retention: Retention = ALL, link_frozen: bool = True) -> Path:
        part = Sharded(retention=retention, link_frozen=link_frozen, asynchronous=request.param)
        checkpointer = part.open(tmp_path, world)
        checkpointer.save(state_at(step, base), progress=Progress(step=step, position=0), metrics={})
        checkpointer.wait()
        return tmp_path / "checkpoints" / f"step_{step}"

    return at_step


def inode(path: Path, name: str = FROZEN) -> int:
    return (path / name).stat().st_ino


def assert_holds(path: Path, world: SoloWorld, step: int, base: Tensor) -> None:
    """Every byte is verified, and the tensors are those."""
    verify_everything(path)
    state = state_at(-1, torch.zeros_like(base))
    opened(path, world).read(state)
    assert torch.equal(state.models["model"]["base"], base)
    assert state.models["model"]["adapter"].tolist() == 3 * [float(step)]


def test_an_unchanged_base_is_not_written_again(save: Callable[..., Path], world: SoloWorld) -> None:
    base = torch.randn(100_000)
    first, second = save(1, base), save(2, base)
    assert inode(first) == inode(second)
    assert inode(first, TRAINED) != inode(second, TRAINED)
    own = [file.stat().st_size for file in second.iterdir() if file.stat().st_nlink == 1]
    assert sum(own) < 3_000 < base.nbytes
    assert_holds(first, world, 1, base)
    assert_holds(second, world, 2, base)


def test_a_linked_checkpoint_equals_one_with_copies(save: Callable[..., Path], world: SoloWorld) -> None:
    """File by file, but for the serial number in the manifest."""
    base = torch.randn(1000)
    save(1, base)
    linked = {file.name: file.read_bytes() for file in save(2, base).iterdir()}
    copied = save(2, base, link_frozen=False)
    assert {file.stat().st_nlink for file in copied.iterdir()} == {1}
    written = {file.name: file.read_bytes() for file in copied.iterdir()}
    assert linked.keys() == written.keys()
    assert [name for name in linked if linked[name] != written[name]] == ["manifest.json"]


@pytest.mark.fault("the checkpoint is deleted to whose file another one is linked", "the other one is whole")
def test_the_base_lives_until_the_last_checkpoint_with_it(save: Callable[..., Path], world: SoloWorld) -> None:
    base = torch.randn(1000)
    first, second = save(1, base), save(2, base, retention=Retention(keep_last=1))
    assert not first.exists()
    assert_holds(second, world, 2, base)
    third = save(3, base)
    assert inode(third) == inode(second)
    shutil.rmtree(second)
    assert_holds(third, world, 3, base)


def test_a_base_that_changed_by_one_bit_is_written(save: Callable[..., Path], world: SoloWorld) -> None:
    """As when adapters are merged into it."""
    base = torch.randn(1000)
    merged = base.clone()
    merged[-1] += 1
    first, second = save(1, base), save(2, merged)
    assert inode(first) != inode(second)
    assert_holds(first, world, 1, base)
    assert_holds(second, world, 2, merged)


def test_a_file_of_another_size_is_not_linked_to(save: Callable[..., Path], world: SoloWorld) -> None:
    base = torch.randn(1000)
    first = save(1, base)
    with (first / FROZEN).open("ab") as file:
        file.write(b"more")
    assert_holds(save(2, base), world, 2, base)


@pytest.mark.fault("a file that several checkpoints are linked to is corrupted", "each of them is refused by name")
def test_what_is_corrupted_in_a_common_file_is_found_in_each(save: Callable[..., Path], world: SoloWorld) -> None:
    base = torch.randn(1000)
    first, second = save(1, base), save(2, base)
    with (first / FROZEN).open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)[0]
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last ^ 1]))
    for path in (first, second):
        with pytest.raises(CheckpointError, match=rf"{path}/{FROZEN} is corrupted: tensor 'model.base' does not match"):
            verify_everything(path)
    with pytest.raises(CheckpointError, match="No older checkpoint is intact"):
        opened(second, world).read(state_at(-1, torch.zeros(1000)))


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[Callable[[Path], None]]:
    """Move a checkpoint to a file system of its own, mounted where it was: nothing can be linked to it."""
    mount, mounted = shutil.which("mount"), []

    def move(path: Path) -> None:
        shutil.copytree(path, tmp_path / "copy")
        options = ["-t", "tmpfs", "-o", "size=4m", "tmpfs", str(path)]
        if mount is None or subprocess.run([mount, *options], check=False, capture_output=True).returncode:
            pytest.skip("this user may not mount a file system")
        mounted.append(path)
        shutil.copytree(tmp_path / "copy", path, dirs_exist_ok=True)

    yield move
    for path in mounted:
        subprocess.run(["umount", str(path)], check=True)


@pytest.mark.fault("a file system without links between two checkpoints", "frozen parameters are written again")
def test_where_no_link_is_possible_the_base_is_written(
    save: Callable[..., Path], world: SoloWorld, elsewhere: Callable[[Path], None]
) -> None:
    base = torch.randn(1000)
    first = save(1, base)
    elsewhere(first)
    second = save(2, base)
    assert (second / FROZEN).stat().st_nlink == 1
    assert_holds(second, world, 2, base)


@pytest.mark.parametrize("when", ["at_once", "later"])
def test_shards_of_two_ranks_are_linked(when: str, tmp_path: Path, on_two_ranks: OnTwoRanks) -> None:
    on_two_ranks("frozen", tmp_path / when)


def test_an_export_of_a_linked_checkpoint_is_whole(save: Callable[..., Path], tmp_path: Path) -> None:
    base = torch.randn(1000)
    save(1, base)
    export_weights(save(2, base), tmp_path, dtype=None, max_shard_bytes=1 << 20)
    assert torch.equal(load_file(tmp_path / "model.safetensors")["base"], base)
