"""A corrupted checkpoint is never taken: the message says which file, and which older one to continue from."""

import io
import pickle
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from runner.checkpoint.sharded import ShardedCheckpointer
from runner.errors import CheckpointError
from runner.protocols import Progress, State
from runner.storage.checkpoints import Checkpoints
from runner.storage.decode import decode_manifest, decode_metadata
from runner.storage.integrity import verify_everything
from runner.storage.names import to_names
from runner.storage.payload import TASK_BYTES
from runner.storage.read import read_tensors
from runner.world.solo import SoloWorld
from tests.storage.states import state_of

Save = Callable[..., Path]

NO_HASH = "is corrupted: it does not match the hash of itself, which is its last line."
OLDER = "An older checkpoint is intact; continue from it: --from step_1."


def flip(file: Path, place: int) -> None:
    """Change one bit."""
    data = bytearray(file.read_bytes())
    data[place] ^= 1
    file.write_bytes(data)


def test_a_flipped_bit_names_file_tensor_and_older_commit(
    checkpoints: Checkpoints, save: Save, blank: State[Tensor]
) -> None:
    save(1)
    path = save(2)
    flip(path / "rank_0.safetensors", -1)
    assert checkpoints.latest() == path  # sizes are right: only reading can tell
    with pytest.raises(CheckpointError) as caught:
        checkpoints.open(path).read(blank)
    fault = f"{path}/rank_0.safetensors is corrupted: tensor 'model.a' does not match its hash in metadata.json."
    assert str(caught.value) == f"{fault} {OLDER}"


def test_of_several_corrupted_tensors_the_first_is_named(
    checkpoints: Checkpoints, checkpointer: ShardedCheckpointer, tmp_path: Path
) -> None:
    """Each is larger than what one thread reads before it takes the next task, so two threads find them."""
    tensors = {f"model.{name}": torch.zeros(TASK_BYTES // 4 + 1) for name in "abcdef"}
    checkpointer.save(state_of(tensors), progress=Progress(step=1, position=0), metrics={})
    path = tmp_path / "checkpoints/step_1"
    size = tensors["model.a"].nbytes
    for number in (1, 2, 5):  # from the end: e, d and a
        flip(path / "rank_0.safetensors", -number * size - 1)
    for read in (lambda: checkpoints.open(path).read(state_of(tensors)), lambda: verify_everything(path)):
        with pytest.raises(CheckpointError, match=r"tensor 'model\.a' does not match its hash in metadata\.json"):
            read()


def test_a_flipped_bit_in_the_header_is_found(checkpoints: Checkpoints, save: Save, blank: State[Tensor]) -> None:
    path = save(2)
    flip(path / "rank_0.safetensors", 20)
    with pytest.raises(
        CheckpointError, match=r"rank_0.safetensors is corrupted: its header .* No older checkpoint is intact"
    ):
        checkpoints.open(path).read(blank)


@pytest.mark.parametrize("name", ["state.json", "metadata.json"])
def test_a_changed_json_file_is_found(name: str, checkpoints: Checkpoints, save: Save, blank: State[Tensor]) -> None:
    save(1)
    path = save(2)
    flip(path / name, -4)
    with pytest.raises(CheckpointError) as caught:
        checkpoints.open(path).read(blank)
    assert str(caught.value) == f"{path}/{name} is corrupted: it does not match its hash in manifest.json. {OLDER}"


def test_a_truncated_file_is_found_before_it_is_read(checkpoints: Checkpoints, save: Save) -> None:
    save(1)
    file = save(2) / "rank_0.safetensors"
    size = file.stat().st_size
    file.write_bytes(file.read_bytes()[:-5])
    with pytest.raises(CheckpointError) as caught:
        checkpoints.latest()
    assert str(caught.value) == f"{file} has {size - 5} bytes instead of {size}. {OLDER}"


def test_a_missing_file_is_found_before_it_is_read(checkpoints: Checkpoints, save: Save) -> None:
    save(1)
    path = save(2)
    (path / "rank_0.safetensors").unlink()
    with pytest.raises(CheckpointError) as caught:
        checkpoints.latest()
    assert str(caught.value) == f"{path}/rank_0.safetensors is missing. {OLDER}"


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", NO_HASH),
        ("{", NO_HASH),
        ("[]", NO_HASH),
        ('{"format": 3}', NO_HASH),
        ('{"format": 9}', NO_HASH),
    ],
)
def test_a_manifest_that_is_none_is_found(text: str, fault: str, checkpoints: Checkpoints, save: Save) -> None:
    save(1)
    path = save(2)
    (path / "manifest.json").write_text(text)
    with pytest.raises(CheckpointError) as caught:
        checkpoints.latest()
    assert str(caught.value).startswith(f"{path}/manifest.json {fault}")
    assert str(caught.value).endswith(OLDER)


@pytest.mark.parametrize("version", [1, 2])
def test_a_checkpoint_of_an_older_format_is_refused_by_name(
    version: int, checkpoints: Checkpoints, save: Save, blank: State[Tensor]
) -> None:
    """Their manifests have no hash of themselves. Nothing else here can be read either: that is not advised."""
    path = save(1)
    (path / "manifest.json").write_text(f'{{"format": {version}, "step": 1, "serial": 1, "files": {{}}}}\n')
    rule = "this version of runner reads format 3. Use the version that wrote it: see provenance.json."
    for read in (checkpoints.latest, lambda: checkpoints.open(path).read(blank)):
        with pytest.raises(CheckpointError) as caught:
            read()
        assert str(caught.value) == f"{path}/manifest.json has format {version}; {rule}"


def test_a_missing_manifest_is_found(checkpoints: Checkpoints, save: Save) -> None:
    path = save(1)
    (path / "manifest.json").unlink()
    with pytest.raises(
        CheckpointError, match=r"manifest.json is missing or cannot be read: No such file or directory."
    ):
        checkpoints.latest()


def test_an_older_commit_that_is_corrupted_too_is_not_offered(checkpoints: Checkpoints, save: Save) -> None:
    for step in (1, 2, 3):
        save(step)
    for path in (save(2), save(3)):
        (path / "state.json").unlink()
    with pytest.raises(CheckpointError) as caught:
        checkpoints.latest()
    assert str(caught.value).endswith(OLDER)


def test_an_older_commit_is_offered_only_after_all_of_it_was_read(checkpoints: Checkpoints, save: Save) -> None:
    for step in (1, 2, 3, 4):
        path = save(step)
        if step in (2, 3):
            flip(path / "rank_0.safetensors", -step)
    (path / "manifest.json").unlink()
    with pytest.raises(CheckpointError) as caught:
        checkpoints.latest()
    assert str(caught.value).endswith(OLDER)


def read(world: SoloWorld, path: Path, tensors: dict[str, Tensor]) -> None:
    """Read the payload alone, as a saved checkpoint does once it has seen that sizes are right."""
    manifest = decode_manifest(path)
    metadata = decode_metadata(path, manifest)
    read_tensors(world, path, tensors, metadata=metadata, files=manifest.files)


def test_a_file_that_shrinks_while_it_is_read_is_said(world: SoloWorld, save: Save, blank: State[Tensor]) -> None:
    file = save(1) / "rank_0.safetensors"
    file.write_bytes(file.read_bytes()[:-5])
    with pytest.raises(
        CheckpointError, match=r"rank_0.safetensors is truncated: tensor 'model.a' ends after 43 of 48 bytes."
    ):
        read(world, file.parent, to_names(blank))


def test_a_file_that_vanishes_while_it_is_read_is_said(world: SoloWorld, save: Save, blank: State[Tensor]) -> None:
    file = save(1) / "rank_0.safetensors"
    file.unlink()
    with pytest.raises(
        CheckpointError, match=r"rank_0.safetensors is missing or cannot be read: No such file or directory."
    ):
        read(world, file.parent, to_names(blank))


def test_what_torch_raises_itself_comes_through_with_rank_and_path(world: SoloWorld, save: Save) -> None:
    path = save(1)
    with pytest.raises(ValueError, match="Size mismatch") as caught:
        read(world, path, {"model.a": torch.zeros(7)})
    assert caught.value.__notes__ == [f"on rank 0, in checkpoint {path}"]


def test_no_pickle_is_ever_loaded(
    checkpoints: Checkpoints, save: Save, blank: State[Tensor], planted: Callable[[], bytes]
) -> None:
    """Pickles planted where torch's own readers would look, and in place of each of our files."""
    path = save(1)
    for name in (".metadata", "__0_0.distcp", "state.pt"):
        (path / name).write_bytes(planted())
    checkpoints.open(path).read(blank)
    for name in ("rank_0.safetensors", "state.json", "metadata.json", "manifest.json"):
        original = (path / name).read_bytes()
        (path / name).write_bytes(planted().ljust(len(original))[: len(original)])
        with pytest.raises(CheckpointError):
            checkpoints.open(path).read(blank)
        (path / name).write_bytes(original)
    assert LOADED == []


LOADED: list[str] = []


@pytest.fixture
def planted() -> Iterator[Callable[[], bytes]]:
    """A pickle that would tell on whoever loads it. The interpreter tells too, of any unpickled class."""
    watching = [True]
    sys.addaudithook(lambda event, args: LOADED.append(event) if watching[0] and event == "pickle.find_class" else None)

    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return io.StringIO, ("boom",)

    yield lambda: pickle.dumps(Bomb())
    watching[0] = False
