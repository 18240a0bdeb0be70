"""Files of a checkpoint that were swapped, renamed or appended to: all are found, by name, before anything goes on."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from runner.checkpoint.plan import describe
from runner.checkpoint.writer import Payload, Piece, write_payload
from runner.errors import CheckpointError
from runner.protocols import State
from runner.storage.checkpoints import Checkpoints
from runner.storage.commit import begin, commit
from runner.storage.format import METADATA, STATE, Manifest, encode_metadata, encode_state
from runner.storage.integrity import verify_everything
from runner.world.solo import SoloWorld
from tests.storage.states import state_of

SHARDS = ("rank_0.safetensors", "rank_1.safetensors")
JSON = ("manifest.json", "metadata.json", "state.json")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Checkpoints of steps 1 and 2 whose two ranks wrote files of one size, with headers alike."""
    checkpoints = tmp_path / "checkpoints"
    checkpoints.mkdir()
    for step in (1, 2):
        partial = begin(checkpoints, step)
        shares = [write_share(partial, rank, float(10 * step + rank)) for rank in (0, 1)]
        whole = {"model.w": Piece("model.w", "float32", (0,), (8,))}
        metadata = describe(whole, [chunk for share in shares for chunk in share.chunks])
        files = {name: file for share in shares for name, file in share.files.items()}
        manifest = Manifest(step=step, position=step, world_size=2, serial=step, metrics={}, files=files)
        texts = {METADATA: encode_metadata(metadata), STATE: encode_state({"values": {"step": step}})}
        commit(partial, manifest, texts)
    return checkpoints


def write_share(partial: Path, rank: int, value: float) -> Payload:
    piece = Piece("model.w", "float32", (4 * rank,), (4,))
    return write_payload(partial, SHARDS[rank], [piece], [torch.full((4,), value)])


def read(run: Path) -> list[float]:
    """What a run would continue from."""
    checkpoints = Checkpoints(run, SoloWorld(torch.device("cpu")))
    state: State[Tensor] = state_of({"model.w": torch.zeros(8)})
    path = checkpoints.latest()
    assert path is not None
    checkpoints.open(path).read(state)
    assert state.values == {"step": 2}, f"continued silently from {path}"
    return state.models["model"]["w"].tolist()


def swap(one: Path, other: Path) -> None:
    aside = one.with_name("aside")
    one.rename(aside)
    other.rename(one)
    aside.rename(other)


def test_untouched_it_is_read(run: Path) -> None:
    assert read(run) == [20.0] * 4 + [21.0] * 4
    verify_everything(run / "step_1")
    verify_everything(run / "step_2")


SWAPS: dict[str, tuple[Callable[[Path], None], str]] = {
    "payloads of two ranks": (
        lambda run: swap(run / "step_2" / SHARDS[0], run / "step_2" / SHARDS[1]),
        r"step_2/rank_\d.safetensors is corrupted",
    ),
    "payloads of two checkpoints": (
        lambda run: swap(run / "step_1" / SHARDS[0], run / "step_2" / SHARDS[0]),
        "step_2/rank_0.safetensors is corrupted",
    ),
    "metadata of two checkpoints": (
        lambda run: swap(run / "step_1" / METADATA, run / "step_2" / METADATA),
        "step_2/metadata.json is corrupted: it does not match its hash in manifest.json",
    ),
    "states of two checkpoints": (
        lambda run: swap(run / "step_1" / STATE, run / "step_2" / STATE),
        "step_2/state.json is corrupted: it does not match its hash in manifest.json",
    ),
    "manifests of two checkpoints": (
        lambda run: swap(run / "step_1" / "manifest.json", run / "step_2" / "manifest.json"),
        "manifest.json is corrupted: its step is",
    ),
    "two JSON files": (
        lambda run: swap(run / "step_2" / METADATA, run / "step_2" / STATE),
        "step_2/.*.json has .* bytes instead of",
    ),
    "two checkpoints": (
        lambda run: swap(run / "step_1", run / "step_2"),
        "manifest.json is corrupted: its step is",
    ),
}


@pytest.mark.fault(
    "files of a checkpoint are swapped: payloads of two ranks, of two checkpoints, each JSON file, whole directories",
    "found, by name",
)
@pytest.mark.parametrize("what", SWAPS)
def test_swapped_files_are_found(run: Path, what: str) -> None:
    act, said = SWAPS[what]
    act(run)
    with pytest.raises(CheckpointError, match=said):
        read(run)


@pytest.mark.fault("bytes are appended to any file of a checkpoint", "found, by name")
@pytest.mark.parametrize("name", [*SHARDS, *JSON])
@pytest.mark.parametrize("tail", [b"\0", b"\n", b" ", b"{}", b"\0" * 4096])
def test_a_file_that_was_appended_to_is_found(run: Path, name: str, tail: bytes) -> None:
    with (run / "step_2" / name).open("ab") as file:
        file.write(tail)
    with pytest.raises(CheckpointError, match=f"step_2/{name} (has .* bytes instead of|is corrupted)"):
        read(run)


@pytest.mark.fault("a file of a checkpoint is emptied", "found, by name")
@pytest.mark.parametrize("name", [*SHARDS, *JSON])
def test_a_file_that_was_emptied_is_found(run: Path, name: str) -> None:
    (run / "step_2" / name).write_bytes(b"")
    with pytest.raises(CheckpointError, match=f"step_2/{name} .*--from step_1"):
        read(run)


def test_files_that_the_manifest_does_not_list_are_not_looked_at(run: Path) -> None:
    """They change nothing: a file is read only if the manifest lists it and the metadata has a tensor in it."""
    (run / "step_2" / "rank_9.safetensors").write_bytes(b"\xff" * 100)
    (run / "step_2" / "notes.txt").write_text("mine")
    (run / "step_2" / "manifest.json.partial-0a1b2c3d").write_text("{")
    assert read(run) == [20.0] * 4 + [21.0] * 4
