"""No file of a checkpoint is ever unpickled: pickles of every kind in its place are refused, whatever hashes say."""

import io
import os
import pickle
import sys
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import xxhash
from torch import Tensor

from runner.checkpoint.sharded import Sharded
from runner.errors import CheckpointError
from runner.protocols import Progress, State
from runner.storage.checkpoints import Checkpoints
from runner.storage.export import export_weights
from runner.world.solo import SoloWorld
from tests.storage.forging import plant, plant_payload
from tests.storage.states import state_of

FILES = ("rank_0.safetensors", "metadata.json", "state.json", "manifest.json")
EVENTS = {"pickle.find_class", "os.system", "subprocess.Popen", "os.posix_spawn", "os.exec", "os.mkdir"}


class Command:
    """Runs a command in whoever unpickles it."""

    def __init__(self, mark: Path) -> None:
        self._mark = mark

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch '{self._mark}'",)


def with_torch(value: object, *, legacy: bool) -> bytes:
    file = io.BytesIO()
    torch.save(value, file, _use_new_zipfile_serialization=not legacy)
    return file.getvalue()


def zipped(value: object) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(value, protocol=2))
    return file.getvalue()


KINDS: dict[str, Callable[[object], bytes]] = {
    "torch.save": lambda value: with_torch({"model": value}, legacy=False),
    "torch.save, legacy": lambda value: with_torch({"model": value}, legacy=True),
    "a zip with a pickle": zipped,
    **{f"protocol {number}": partial(pickle.dumps, protocol=number) for number in range(6)},
}


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    checkpointer = Sharded().open(tmp_path, SoloWorld(torch.device("cpu")))
    state = state_of({"model.a": torch.ones(600)}, {"step": 1})
    checkpointer.save(state, progress=Progress(step=1, position=1), metrics={})
    return tmp_path / "checkpoints" / "step_1"


@pytest.fixture
def seen() -> Iterator[list[str]]:
    """What the interpreter tells of unpickled classes and started processes."""
    events: list[str] = []
    watching = [True]
    sys.addaudithook(lambda event, args: events.append(event) if watching[0] and event in EVENTS else None)
    yield events
    watching[0] = False


@pytest.mark.fault("a pickle of any kind in place of any file of a checkpoint", "refused; nothing is executed")
@pytest.mark.parametrize("kind", KINDS)
def test_a_pickle_of_any_kind_is_refused_in_place_of_any_file(
    checkpoint: Path, tmp_path: Path, seen: list[str], kind: str
) -> None:
    mark, out = tmp_path / "code_ran", tmp_path / "out"
    data = KINDS[kind](Command(mark))
    out.mkdir()
    for name in FILES:
        original = {file: (checkpoint / file).read_bytes() for file in FILES}
        for forge in (write, plant_with_hash, plant_in_its_size):
            seen.clear()
            forge(checkpoint, name, data)
            with pytest.raises(CheckpointError, match=r"(safetensors|json) (is corrupted|has \d+ bytes instead of)"):
                read(checkpoint)
            if name != "state.json":  # an export does not open it
                with pytest.raises(
                    CheckpointError, match=r"(safetensors|json) (is corrupted|has \d+ bytes instead of)"
                ):
                    export_weights(checkpoint, out, dtype=None, max_shard_bytes=1 << 30)
            assert seen == []
            for file, content in original.items():
                (checkpoint / file).write_bytes(content)
            for exported in out.iterdir():
                exported.unlink()
    assert not mark.exists()


def test_such_a_pickle_would_run_its_command(tmp_path: Path, seen: list[str]) -> None:
    mark = tmp_path / "code_ran"
    pickle.loads(pickle.dumps(Command(mark)))
    assert mark.exists()
    assert "pickle.find_class" in seen
    assert "os.system" in seen


def write(checkpoint: Path, name: str, data: bytes) -> None:
    (checkpoint / name).write_bytes(data)


def plant_with_hash(checkpoint: Path, name: str, data: bytes) -> None:
    if name == "manifest.json":
        data = data.replace(b"\n", b" ") + b",\n"
        write(checkpoint, name, data + b'"xxh3_128": "%s"}\n' % xxhash.xxh3_128_hexdigest(data).encode())
    else:
        plant(checkpoint, name, data)


def plant_in_its_size(checkpoint: Path, name: str, data: bytes) -> None:
    size = (checkpoint / name).stat().st_size
    data = data.ljust(size, b"\0")[:size]
    if name == "rank_0.safetensors":
        plant_payload(checkpoint, name, data, header=size - 2400)
    else:
        plant_with_hash(checkpoint, name, data)


def read(checkpoint: Path) -> Any:
    checkpoints = Checkpoints(checkpoint.parent, SoloWorld(torch.device("cpu")))
    state: State[Tensor] = state_of({"model.a": torch.zeros(600)})
    path = checkpoints.latest()
    assert path == checkpoint
    checkpoints.open(path).read(state)
