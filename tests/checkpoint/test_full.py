"""One file with everything whole: any program loads it, and so does every way of reading checkpoints."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from runner.checkpoint.full import Full
from runner.checkpoint.gather import FILE
from runner.checkpoint.retention import Retention
from runner.errors import CheckpointError
from runner.protocols import Progress, State
from runner.storage.export import export_weights
from runner.world.solo import SoloWorld
from tests.checkpoint.conftest import OnTwoRanks
from tests.checkpoint.test_two_ranks import EXPECTED
from tests.storage.states import open_latest, state_of


def save(run_dir: Path, world: SoloWorld, step: int, *, keep_last: int = 3) -> Path:
    tensors = {
        "model.a": torch.full((4, 3), float(step)),
        "model.n": torch.tensor(step),
        "model.empty": torch.ones(0, 3),
    }
    state = state_of(tensors, {"step": step})
    checkpointer = Full(retention=Retention(keep_last=keep_last)).open(run_dir, world)
    checkpointer.save(state, progress=Progress(step=step, position=0), metrics={})
    return run_dir / "checkpoints" / f"step_{step}"


def test_shards_of_two_ranks_are_whole_in_one_file(tmp_path: Path, on_two_ranks: OnTwoRanks) -> None:
    on_two_ranks("save_full", tmp_path)
    path = tmp_path / "checkpoints/step_5"
    assert [file.name for file in path.glob("*.safetensors")] == [FILE]
    read = load_file(path / FILE)
    assert all(torch.equal(read[name], tensor) for name, tensor in EXPECTED.items())
    assert read["rng.rank_1.torch"].tolist() == 4 * [1]
    assert read.keys() == {*EXPECTED, "optimizer.0.bias.step", "rng.rank_0.torch", "rng.rank_1.torch"}


def test_what_full_saved_is_read_as_every_checkpoint_is(tmp_path: Path, world: SoloWorld) -> None:
    path = save(tmp_path, world, 4)
    a, n = torch.zeros(4, 3), torch.tensor(0)
    state = state_of({"model.a": a, "model.n": n, "model.empty": torch.zeros(0, 3)})
    saved = open_latest(tmp_path, world)
    assert saved.path == path
    saved.read(state)
    assert set(a.flatten().tolist()) == {4.0}
    assert (int(n), state.values) == (4, {"step": 4})


def test_only_the_newest_stay(tmp_path: Path, world: SoloWorld) -> None:
    for step in (1, 2, 3):
        path = save(tmp_path, world, step, keep_last=1)
    assert list(path.parent.iterdir()) == [path]


def test_its_weights_are_exported(tmp_path: Path, world: SoloWorld) -> None:
    export_weights(save(tmp_path, world, 4), tmp_path, dtype=None, max_shard_bytes=1 << 20)
    assert load_file(tmp_path / "model.safetensors")["a"].tolist() == [[4.0] * 3] * 4


def test_a_directory_that_vanished_is_said(tmp_path: Path, world: SoloWorld) -> None:
    checkpointer = Full().open(tmp_path, world)
    (tmp_path / "checkpoints").rmdir()
    with pytest.raises(
        CheckpointError, match=r"step_1.partial-\w+: No such file or directory. Repair that file system"
    ):
        checkpointer.save(State(), progress=Progress(step=1, position=0), metrics={})
