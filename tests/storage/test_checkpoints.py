"""The committed checkpoints of a run: what is found, what is read, and what is refused."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from runner.checkpoint.retention import Retention
from runner.checkpoint.sharded import Sharded, ShardedCheckpointer
from runner.errors import CheckpointError
from runner.protocols import Progress, State, StoredTensor
from runner.storage.checkpoints import Checkpoints, SavedCheckpoint
from runner.storage.commit import begin, commit
from runner.storage.format import METADATA, STATE, Manifest, TensorMetadata, encode_metadata, encode_state
from runner.world.solo import SoloWorld
from tests.storage.states import open_latest, state_of

SaveState = Callable[[State[Tensor]], SavedCheckpoint]


@pytest.fixture
def saved(tmp_path: Path, checkpointer: ShardedCheckpointer, world: SoloWorld) -> SaveState:
    """Save a state; returns the checkpoint, open for reading."""

    def save(state: State[Tensor]) -> SavedCheckpoint:
        checkpointer.save(state, progress=Progress(step=7, position=70), metrics={})
        return open_latest(tmp_path, world)

    return save


def test_a_run_without_a_directory_of_checkpoints_has_none(tmp_path: Path, world: SoloWorld) -> None:
    assert Checkpoints(tmp_path / "nowhere", world).latest() is None


def test_every_part_of_a_state_comes_back(saved: SaveState) -> None:
    def state(value: float) -> State[Tensor]:
        return State(
            models={"model": {"0.weight": torch.full((2, 2), value)}, "teacher": {"0.weight": torch.full((3,), value)}},
            optimizers={
                "model": {"0.weight": {"exp_avg": torch.full((2, 2), 2 * value), "step": torch.tensor(value)}},
                "teacher": {"0.weight": {"exp_avg": torch.full((3,), 3 * value)}},
            },
            callbacks={"ema.slow": {"model.0.weight": torch.full((2, 2), 4 * value)}},
            rng={0: {"torch": torch.full((4,), int(value), dtype=torch.uint8)}},
        )

    read = state(0.0)
    saved(state(5.0)).read(read)
    assert set(read.models["model"]["0.weight"].flatten().tolist()) == {5.0}
    assert read.models["teacher"]["0.weight"].tolist() == [5.0] * 3
    assert set(read.optimizers["model"]["0.weight"]["exp_avg"].flatten().tolist()) == {10.0}
    assert read.optimizers["model"]["0.weight"]["step"].item() == 5.0
    assert read.optimizers["teacher"]["0.weight"]["exp_avg"].tolist() == [15.0] * 3
    assert set(read.callbacks["ema.slow"]["model.0.weight"].flatten().tolist()) == {20.0}
    assert read.rng[0]["torch"].tolist() == [5] * 4


def test_a_part_of_what_is_stored_can_be_read_alone(saved: SaveState) -> None:
    checkpoint = saved(state_of({"model.w": torch.ones(2), "optimizer.w.exp_avg": torch.ones(2)}, {"step": 7}))
    w = torch.zeros(2)
    checkpoint.read(State(models={"model": {"w": w}}))
    assert w.tolist() == [1.0, 1.0]


def test_weights_may_be_loaded_in_another_precision(saved: SaveState) -> None:
    half = torch.zeros(2, dtype=torch.bfloat16)
    saved(state_of({"model.w": torch.tensor([1.0, 2.5])})).read(state_of({"model.w": half}))
    assert half.tolist() == [1.0, 2.5]


def test_values_are_replaced_by_those_stored(saved: SaveState) -> None:
    values = {"epoch": 0, "stale": True}
    saved(State(values={"epoch": 3, "names": ["a"]})).read(State(values=values))
    assert values == {"epoch": 3, "names": ["a"]}


def test_stored_says_shapes_and_types_by_owner(saved: SaveState) -> None:
    tensors = {"w": torch.zeros(2, 3, dtype=torch.bfloat16), "n": torch.tensor(1)}
    state = State(models={"model": tensors}, optimizers={"model": {"w": {"step": torch.tensor(1.0)}}}, values={"a": 1})
    assert saved(state).stored == State(
        models={"model": {"w": StoredTensor((2, 3), torch.bfloat16), "n": StoredTensor((), torch.int64)}},
        optimizers={"model": {"w": {"step": StoredTensor((), torch.float32)}}},
    )


def test_all_that_does_not_fit_is_named(saved: SaveState) -> None:
    stored = {"model.a": torch.zeros(2), "model.b": torch.zeros(2), "model.n": torch.tensor(1)}
    checkpoint = saved(state_of(stored))
    here = {"model.a": torch.zeros(3), "model.x": torch.zeros(1), "model.y": torch.zeros(1)}
    with pytest.raises(CheckpointError) as caught:
        checkpoint.read(state_of({**here, "model.n": torch.tensor(1.0)}))
    assert str(caught.value) == (
        f"{checkpoint.path} is not a checkpoint of this model: model.a has shape [2], here [3]; "
        "model.n has dtype int64, here float32; model.x is missing; model.y is missing."
    )


def test_a_tensor_of_an_unknown_kind_is_refused(tmp_path: Path, checkpoints: Checkpoints) -> None:
    (tmp_path / "checkpoints").mkdir()
    manifest = Manifest(step=1, position=0, world_size=1, serial=1, metrics={}, files={})
    metadata = encode_metadata(
        {"model.w": TensorMetadata("float32", (0,), ()), "w": TensorMetadata("float32", (0,), ())}
    )
    path = commit(begin(tmp_path / "checkpoints", 1), manifest, {METADATA: metadata, STATE: encode_state({})})
    with pytest.raises(CheckpointError) as caught:
        checkpoints.open(path)
    assert str(caught.value) == (
        f"{path}/metadata.json: 'w' is not the name of a tensor in a checkpoint. "
        "Resume with the version of runner that wrote it: see provenance.json."
    )


def test_a_corrupted_checkpoint_is_not_opened(checkpoints: Checkpoints, save: Callable[..., Path]) -> None:
    save(1)
    path = save(2)
    (path / "metadata.json").unlink()
    with pytest.raises(CheckpointError) as caught:
        checkpoints.open(path)
    older = "An older checkpoint is intact; continue from it: --from step_1."
    assert str(caught.value) == f"{path}/metadata.json is missing. {older}"


def test_latest_is_whole_while_saves_commit_and_drop_in_the_background(
    tmp_path: Path, checkpoints: Checkpoints, world: SoloWorld
) -> None:
    """A checkpoint that gives way to a newer one while it is looked at is not mistaken for a corrupted one."""
    checkpointer = Sharded(asynchronous=True, retention=Retention(keep_last=1)).open(tmp_path, world)
    state = state_of({"model.w": torch.ones(2)})
    found: list[int] = []
    for step in range(1, 40):
        checkpointer.save(state, progress=Progress(step=step, position=0), metrics={})
        for _ in range(20):
            path = checkpoints.latest()
            found += [] if path is None else [int(path.name.removeprefix("step_"))]
    checkpointer.wait()
    assert found == sorted(found)
    assert checkpoints.latest() == tmp_path / "checkpoints" / "step_39"
