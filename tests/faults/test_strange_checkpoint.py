"""A checkpoint is a stranger's data: whatever its files say or are, one CheckpointError names file, place and way out.

The hashes match in all of these: who plants such files computes them.
"""

import json
import os
import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from runner.checkpoint.retention import Retention
from runner.checkpoint.sharded import Sharded
from runner.errors import CheckpointError
from runner.protocols import Progress, State
from runner.storage.checkpoints import Checkpoints
from runner.storage.commit import recover
from runner.storage.export import export_weights, models_in
from runner.storage.integrity import verify_everything
from runner.world.solo import SoloWorld
from tests.storage.forging import change_manifest, change_metadata, plant, plant_payload, sealed
from tests.storage.states import state_of

PAYLOAD = "rank_0.safetensors"
FILES = ("manifest.json", "metadata.json", "state.json", PAYLOAD)
WAY_OUT = "An older checkpoint is intact; continue from it: --from step_1."
MEMORY = 1 << 30  # bytes that reading may claim beyond what the process has


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """The newer of two checkpoints."""
    checkpointer = Sharded(retention=Retention(keep_last=None)).open(tmp_path, SoloWorld(torch.device("cpu")))
    for step in (1, 2):
        tensors = {"model.a": torch.full((4, 3), float(step)), "model.b": torch.full((2,), step)}
        checkpointer.save(state_of(tensors, {"step": step}), progress=Progress(step=step, position=step), metrics={})
    return tmp_path / "checkpoints" / "step_2"


@pytest.fixture(autouse=True)
def _bounded_memory() -> Iterator[None]:
    """An allocation of terabytes must not even be tried: it would end the test with another error."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY, hard))
    yield
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def restore(checkpoint: Path) -> None:
    """Read it as a resume would."""
    checkpoints = Checkpoints(checkpoint.parent, SoloWorld(torch.device("cpu")))
    blank: State[Tensor] = state_of({"model.a": torch.zeros(4, 3), "model.b": torch.zeros(2, dtype=torch.int64)})
    path = checkpoints.latest()
    assert path == checkpoint
    checkpoints.open(path).read(blank)


def refused(checkpoint: Path) -> str:
    """What a resume says."""
    with pytest.raises(CheckpointError) as caught:
        restore(checkpoint)
    said = str(caught.value)
    assert said.endswith(WAY_OUT), said
    assert len(said) < 1000, "it fits a screen"
    assert said.isprintable(), "a terminal obeys nothing in it"
    return said


@pytest.mark.fault("metadata claims terabytes", "refused before anything is allocated")
def test_absurd_claims_are_refused_before_anything_is_allocated(checkpoint: Path) -> None:
    """A shape of 2^40 asked for 4 TiB."""
    change_metadata(checkpoint, lambda tensors: tensors["model.a"].update(shape=[2**40]))
    said = refused(checkpoint)
    assert "metadata.json is corrupted: tensors['model.a'].chunks[0] is not a box within its tensor." in said
    with pytest.raises(CheckpointError, match=r"metadata.json is corrupted: .* Export another checkpoint"):
        models_in(checkpoint)


def first(tensors: dict[str, Any]) -> dict[str, Any]:
    """The only chunk of model.a, [4, 3] of float32."""
    chunk: dict[str, Any] = tensors["model.a"]["chunks"][0]
    return chunk


HUGE = 2**62
CLAIMS: list[tuple[Callable[[dict[str, Any]], object], str]] = [
    (lambda t: t["model.a"].update(shape=[2**40, 3]), "the chunks of tensors['model.a'] overlap, or leave a gap"),
    (lambda t: t["model.a"].update(shape=[HUGE, HUGE]), "the size of tensors['model.a'] is"),
    (lambda t: t["model.a"].update(shape=[2**63]), "tensors['model.a'].shape[0] is 9223372036854775808, but must be"),
    (lambda t: t["model.a"].update(shape=[10**400]), "tensors['model.a'].shape[0] is 10"),
    (lambda t: t["model.a"].update(shape=[-4, -3]), "tensors['model.a'].shape[0] is -4, but must be a whole number"),
    (lambda t: t["model.a"].update(shape=[True, 3]), "tensors['model.a'].shape[0] is True, but must be"),
    (lambda t: t["model.a"].update(shape=[4.0, 3]), "tensors['model.a'].shape[0] is 4.0, but must be"),
    (lambda t: t["model.a"].update(shape="12"), "tensors['model.a'].shape is '12', but must be an array"),
    (lambda t: t["model.a"].update(shape=[1] * 100_000), "tensors['model.a'].shape has 100000 entries"),
    (lambda t: t["model.a"].update(shape=[0, 3]), "tensors['model.a'].chunks[0] is not a box within its tensor"),
    (lambda t: t["model.a"].update(dtype="float64"), "tensors['model.a'].chunks[0].bytes is 48, but must be"),
    (lambda t: t["model.a"].update(dtype="object"), "tensors['model.a'].dtype is 'object', but must be one of float64"),
    (lambda t: t["model.a"].update(dtype=["float32"]), "tensors['model.a'].dtype is ['float32'], but must be a"),
    (lambda t: t["model.a"].update(chunks=[]), "the chunks of tensors['model.a'] overlap, or leave a gap"),
    (lambda t: t["model.a"].update(chunks=None), "tensors['model.a'].chunks is None, but must be an array"),
    (lambda t: t["model.a"]["chunks"].append(first(t)), "the chunks of tensors['model.a'] overlap, or leave a gap"),
    (lambda t: t["model.a"].update(code="x"), "tensors['model.a'] has an unknown ['code']"),
    (lambda t: t["model.a"].pop("dtype"), "tensors['model.a'] lacks dtype"),
    (lambda t: t.update({"model.c": None}), "tensors['model.c'] is None, but must be an object"),
    (lambda t: t.update({"model.\x1b[2J": t.pop("model.a")}), "the name of a tensor is 'model.\\x1b[2J', but must be"),
    (lambda t: t.update({"model.\ud800": t.pop("model.a")}), "the name of a tensor is 'model.\\ud800', but must be"),
    (lambda t: first(t).update(offset=[1, 0]), "tensors['model.a'].chunks[0] is not a box within its tensor"),
    (lambda t: first(t).update(offset=[-1, 0]), "tensors['model.a'].chunks[0].offset[0] is -1, but must be"),
    (lambda t: first(t).update(offset=[0]), "tensors['model.a'].chunks[0] is not a box within its tensor"),
    (lambda t: first(t).update(shape=[2, 3], bytes=24), "the chunks of tensors['model.a'] overlap, or leave a gap"),
    (lambda t: first(t).update(bytes=-48), "tensors['model.a'].chunks[0].bytes is -48, but must be"),
    (lambda t: first(t).update(bytes=2**40), "tensors['model.a'].chunks[0].bytes is 1099511627776, but must be"),
    (lambda t: first(t).update(start=0), "tensors['model.a'].chunks[0].start is 0, but must be a whole number from 8"),
    (
        lambda t: first(t).update(start=HUGE),
        "its tensors overlap in 'rank_0.safetensors', leave gaps, or end elsewhere",
    ),
    (lambda t: first(t).update(start=None), "tensors['model.a'].chunks[0].start is None, but must be"),
    (lambda t: first(t).update(xxh3_128="00"), "tensors['model.a'].chunks[0].xxh3_128 is not a hash"),
    (lambda t: first(t).update(key=7), "tensors['model.a'].chunks[0].key is 7, but must be a printable string"),
    (lambda t: first(t).update(file="../step_1/rank_0.safetensors"), "manifest.json does not list '../step_1/rank_0.s"),
    (lambda t: first(t).update(file="/dev/zero"), "manifest.json does not list '/dev/zero'"),
    (lambda t: first(t).update(file="state.json"), "manifest.json does not list 'state.json'"),
    (
        lambda t: first(t).update(file="rank_0\x00.safetensors"),
        "tensors['model.a'].chunks[0].file is 'rank_0\\x00.safe",
    ),
    (lambda t: t.clear(), "it has no tensor in 'rank_0.safetensors'"),
]


@pytest.mark.fault("metadata with other shapes, offsets, dtypes or files", "one error names file and field")
@pytest.mark.parametrize(("change", "fault"), CLAIMS, ids=[fault[:60] for _, fault in CLAIMS])
def test_what_metadata_claims_is_held_against_the_files(
    checkpoint: Path, change: Callable[[dict[str, Any]], object], fault: str
) -> None:
    change_metadata(checkpoint, change)
    assert f"{checkpoint}/metadata.json is corrupted: {fault}" in refused(checkpoint)


TEXTS = [
    (b"", "Expecting value: line 1 column 1 (char 0)"),
    (b"\x80\x04", "'utf-8' codec can't decode byte 0x80 in position 0: invalid start byte"),
    (b"[" * 100_000 + b"]" * 100_000, "it is nested too deeply"),
    (b'{"a":' * 100_000, "it is nested too deeply"),
    (b"[]", "it is [] instead of a JSON object"),
    (b"null", "it is None instead of a JSON object"),
    (b'{"format": 3, "format": 3}', "it has the key 'format' twice"),
    (b'{"format": 3, "x": {"\\u001b": 1, "\\u001b": 2}}', "it has the key '\\x1b' twice"),
    (b'{"format": %s}' % (b"9" * 5000), "Exceeds the limit"),
    (b'{"format": 2}', ""),
    (b"{}", "format is None, but must be a whole number"),
    (b'{"format": true}', "format is True, but must be a whole number"),
    (b'{"format": 3}', ""),
    (b'{"format": 3, "tensors": [], "values": []}', ""),
    (b'{"format": 3, "tensors": 1e999, "values": 1e999}', ""),
]


@pytest.mark.parametrize("name", ["metadata.json", "state.json"])
@pytest.mark.parametrize(("text", "fault"), TEXTS, ids=range(len(TEXTS)))
def test_a_text_that_is_none_is_told(checkpoint: Path, name: str, text: bytes, fault: str) -> None:
    plant(checkpoint, name, text)
    if text == b'{"format": 2}':
        with pytest.raises(CheckpointError) as caught:
            verify_everything(checkpoint)
        rule = "this version of runner reads format 3. Use the version that wrote it: see provenance.json."
        assert str(caught.value) == f"{checkpoint}/{name} has format 2; {rule}"
    else:
        assert f"{checkpoint}/{name} is corrupted: {fault}" in refused(checkpoint)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"format": 3, "step": NaN}', '{"step": 2, "step": 2}', "[1, 2}", "}"])
def test_a_manifest_that_matches_its_hash_may_still_be_none(checkpoint: Path, text: str) -> None:
    (checkpoint / "manifest.json").write_bytes(sealed(text))
    assert f"{checkpoint}/manifest.json is corrupted: " in refused(checkpoint)


NAMES = [
    "../step_1/state.json",
    "/etc/passwd",
    "a/b",
    "..",
    ".",
    "",
    "a\0b",
    "a\nb",
    "\x1b[2J",
    "x" * 256,
    "manifest.json",
    "ä",
]


@pytest.mark.fault("names of files that lead out of the checkpoint", "refused")
@pytest.mark.parametrize("name", NAMES)
def test_names_of_files_stay_inside_the_directory(checkpoint: Path, name: str) -> None:
    entry = {"bytes": 0, "xxh3_128": "0" * 32}
    change_manifest(checkpoint, lambda fields: fields["files"].update({name: entry}))
    assert f"{checkpoint}/manifest.json is corrupted: files lists " in refused(checkpoint)


def test_a_file_that_no_tensor_is_in_is_told(checkpoint: Path) -> None:
    plant(checkpoint, "rank_7.safetensors", b"x")
    assert "metadata.json is corrupted: it has no tensor in 'rank_7.safetensors'." in refused(checkpoint)


def make_link(path: Path) -> None:
    aside = path.with_name(f"{path.name}.real")
    path.rename(aside)
    path.symlink_to(aside)


def make_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def make_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def make_link_to_a_device(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


@pytest.mark.fault("a pipe, a device or a link in place of a file", "neither opened nor waited for")
@pytest.mark.timeout(30)
@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("make", [make_link, make_pipe, make_directory, make_link_to_a_device])
def test_what_is_no_regular_file_is_neither_opened_nor_waited_for(
    checkpoint: Path, name: str, make: Callable[[Path], None]
) -> None:
    make(checkpoint / name)
    assert f"{checkpoint / name} is " in refused(checkpoint)


def test_a_checkpoint_that_is_a_file_is_told(checkpoint: Path) -> None:
    (checkpoint.parent / "step_9").write_text("")
    checkpoints = Checkpoints(checkpoint.parent, SoloWorld(torch.device("cpu")))
    with pytest.raises(
        CheckpointError, match=r"step_9/manifest.json is missing or cannot be read: Not a directory\. An o"
    ):
        checkpoints.latest()


def test_leftovers_that_are_no_directories_do_not_stop_a_run(checkpoint: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "precious").write_text("")
    (checkpoint.parent / "step_3.partial-0a1b2c3d").symlink_to(elsewhere)
    (checkpoint.parent / "step_4.partial-0a1b2c3d").write_text("")
    recover(checkpoint.parent)
    assert sorted(path.name for path in checkpoint.parent.iterdir()) == ["step_1", "step_2"]
    assert (elsewhere / "precious").exists()


LENGTHS = [0, 1, 2**63, 2**64 - 1, 100_000_001, 2**40, 8]


@pytest.mark.fault("a safetensors header of absurd length", "refused before it is read")
@pytest.mark.parametrize("length", LENGTHS)
def test_a_safetensors_header_of_an_absurd_length_is_told(checkpoint: Path, length: int) -> None:
    data = length.to_bytes(8, "little") + (checkpoint / PAYLOAD).read_bytes()[8:]
    plant_payload(checkpoint, PAYLOAD, data, header=len(data))
    said = refused(checkpoint)
    assert f"{checkpoint / PAYLOAD} is corrupted: its header would have {length} bytes, but metadata.json says " in said


@pytest.mark.parametrize("size", [0, 1, 7, 8, 100])
def test_a_payload_that_ends_in_its_header_is_told(checkpoint: Path, size: int) -> None:
    data = (checkpoint / PAYLOAD).read_bytes()[:size]
    plant_payload(checkpoint, PAYLOAD, data, header=size)
    assert "metadata.json is corrupted: its tensors overlap in 'rank_0.safetensors', leave gaps, or" in refused(
        checkpoint
    )


@pytest.mark.fault("a JSON file of a terabyte", "it is not read")
@pytest.mark.parametrize("name", ["manifest.json", "metadata.json", "state.json"])
def test_a_json_file_of_a_terabyte_is_not_read(checkpoint: Path, name: str) -> None:
    """Sparse: it takes no room."""
    os.truncate(checkpoint / name, 1 << 40)
    if name != "manifest.json":
        entry = {"bytes": 1 << 40, "xxh3_128": "0" * 32}
        change_manifest(checkpoint, lambda fields: fields["files"].update({name: entry}))
    assert f"{checkpoint / name} has 1099511627776 bytes, but must have at most " in refused(checkpoint)


def test_an_export_of_a_forged_checkpoint_claims_nothing(checkpoint: Path, tmp_path: Path) -> None:
    for change, _ in CLAIMS:
        content = (checkpoint / "metadata.json").read_bytes()
        change_metadata(checkpoint, change)
        (tmp_path / "out").mkdir(exist_ok=True)
        with pytest.raises(CheckpointError, match=r"metadata.json is corrupted"):
            export_weights(checkpoint, tmp_path / "out", dtype=None, max_shard_bytes=1 << 30)
        plant(checkpoint, "metadata.json", content)
    assert list((tmp_path / "out").iterdir()) == []
    assert json.loads((checkpoint / "metadata.json").read_text())["format"] == 3
