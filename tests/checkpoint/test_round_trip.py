"""What is saved comes back, bit for bit, and anyone can read it."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from runner.checkpoint.sharded import ShardedCheckpointer
from runner.errors import CheckpointError
from runner.protocols import Progress, State
from runner.storage.memory import DTYPES
from runner.world.solo import SoloWorld
from tests.storage.states import open_latest, state_of

PROGRESS = Progress(step=7, position=70)


def bits(tensor: Tensor) -> list[int]:
    """Its bytes: some types cannot compare, and NaN equals nothing."""
    flat: list[int] = tensor.contiguous().reshape(-1).view(torch.uint8).tolist()
    return flat


RoundTrip = Callable[[dict[str, Tensor]], dict[str, Tensor]]


@pytest.fixture
def round_trip(tmp_path: Path, checkpointer: ShardedCheckpointer, world: SoloWorld) -> RoundTrip:
    """Save a model's tensors, and read them into others."""

    def save_and_read(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        checkpointer.save(State(models={"model": tensors}), progress=PROGRESS, metrics={})
        back = {name: torch.zeros(tensor.shape, dtype=tensor.dtype) for name, tensor in tensors.items()}
        open_latest(tmp_path, world).read(State(models={"model": back}))
        return back

    return save_and_read


@pytest.mark.parametrize("name", DTYPES)
def test_every_type_comes_back_bit_for_bit(name: str, round_trip: RoundTrip) -> None:
    raw = torch.randint(0, 2 if name == "bool" else 256, (48,), dtype=torch.uint8)
    tensor = raw.view(DTYPES[name])
    back = round_trip({"t": tensor, "scalar": tensor[0].clone(), "empty": tensor[:0].reshape(0, 3)})
    assert bits(back["t"]) == bits(tensor)
    assert bits(back["scalar"]) == bits(tensor[0])
    assert back["empty"].shape == (0, 3)


def test_a_tensor_that_is_not_contiguous_comes_back(round_trip: RoundTrip) -> None:
    columns = torch.arange(12.0).reshape(3, 4).T
    assert torch.equal(round_trip({"t": columns})["t"], columns)


def test_a_target_that_is_not_contiguous_is_filled(
    tmp_path: Path, checkpointer: ShardedCheckpointer, world: SoloWorld
) -> None:
    checkpointer.save(State(models={"model": {"t": torch.arange(12.0).reshape(3, 4)}}), progress=PROGRESS, metrics={})
    memory = torch.zeros(4, 3)
    open_latest(tmp_path, world).read(State(models={"model": {"t": memory.T}}))
    assert torch.equal(memory.T, torch.arange(12.0).reshape(3, 4))


def test_parameters_are_filled_in_place(tmp_path: Path, checkpointer: ShardedCheckpointer, world: SoloWorld) -> None:
    parameter = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
    checkpointer.save(State(models={"model": {"p": parameter}}), progress=PROGRESS, metrics={})
    with torch.no_grad():
        parameter.zero_()
    open_latest(tmp_path, world).read(State(models={"model": {"p": parameter}}))
    assert parameter.tolist() == [1.0, 2.0]


def test_thousands_of_small_tensors_come_back(round_trip: RoundTrip) -> None:
    tensors = {f"t{n}": torch.full((n % 5,), float(n)) for n in range(2500)}
    back = round_trip(tensors)
    assert all(torch.equal(back[name], tensor) for name, tensor in tensors.items())


def test_a_tensor_larger_than_a_batch_comes_back(round_trip: RoundTrip) -> None:
    large = torch.arange(10 << 20, dtype=torch.int32)  # 40 MiB; a batch is 32
    back = round_trip({"before": torch.ones(3), "large": large, "after": torch.ones(5)})
    assert torch.equal(back["large"], large)
    assert torch.equal(back["after"], torch.ones(5))


def test_anyone_reads_the_payload_with_safe_open(tmp_path: Path, checkpointer: ShardedCheckpointer) -> None:
    tensors = {
        "u8": torch.tensor([1, 2, 3], dtype=torch.uint8),
        "f64": torch.tensor([0.5]),
        "bf": torch.ones(2).bfloat16(),
    }
    checkpointer.save(State(models={"model": tensors}), progress=PROGRESS, metrics={})
    with safe_open(tmp_path / "checkpoints/step_7/rank_0.safetensors", "pt") as file:
        read = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    assert read.keys() == {f"model.{name}" for name in tensors}
    assert all(torch.equal(read[f"model.{name}"], tensor) for name, tensor in tensors.items())


def test_the_rest_is_json(tmp_path: Path, checkpointer: ShardedCheckpointer) -> None:
    checkpointer.save(State(models={"model": {"w": torch.ones(2)}}), progress=PROGRESS, metrics={"eval/loss": 0.5})
    path = tmp_path / "checkpoints/step_7"
    names = {"rank_0.safetensors", "metadata.json", "state.json", "manifest.json"}
    assert {file.name for file in path.iterdir()} == names
    manifest = json.loads((path / "manifest.json").read_text())
    assert (manifest["step"], manifest["position"], manifest["world_size"]) == (7, 70, 1)
    assert manifest["files"].keys() == names - {"manifest.json"}
    state = json.loads((path / "state.json").read_text())
    assert state["progress"] == {"step": 7, "position": 70}
    assert state["metrics"] == {"eval/loss": 0.5}


def test_what_is_not_a_tensor_is_refused_by_name(tmp_path: Path, checkpointer: ShardedCheckpointer) -> None:
    wrong = State(models={"model": {"good": torch.ones(1), "bad": [1, 2]}})
    with pytest.raises(CheckpointError, match=r"^model.bad cannot be saved: it is not a tensor. Put what JSON"):
        checkpointer.save(wrong, progress=PROGRESS, metrics={})
    assert list((tmp_path / "checkpoints").iterdir()) == []


def test_a_type_that_safetensors_lacks_is_refused_by_name(checkpointer: ShardedCheckpointer) -> None:
    wrong = state_of({"model.z": torch.ones(1, dtype=torch.complex128)})
    with pytest.raises(
        CheckpointError,
        match=r"^model.z cannot be saved: safetensors has no dtype complex128. Use one of float64, float32",
    ):
        checkpointer.save(wrong, progress=PROGRESS, metrics={})


def test_a_value_that_json_cannot_say_is_refused_by_name(tmp_path: Path, checkpointer: ShardedCheckpointer) -> None:
    wrong: State[torch.Tensor] = State(values={"fine": 1, "bad": {1, 2}})
    with pytest.raises(
        CheckpointError,
        match=r"^values\['bad'\] cannot be saved: .* not JSON serializable. Values must be what JSON can",
    ):
        checkpointer.save(wrong, progress=PROGRESS, metrics={})
    assert list((tmp_path / "checkpoints").iterdir()) == []
