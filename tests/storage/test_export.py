"""An export is the checkpoint's weights, as safetensors and transformers read them: all of them, once, bit for bit."""

import json
import math
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from runner.checkpoint.sharded import Sharded
from runner.errors import CheckpointError
from runner.protocols import Progress
from runner.storage.commit import begin, commit
from runner.storage.export import export_weights, fresh_directory, models_in
from runner.storage.format import METADATA, STATE, Chunk, File, Manifest, TensorMetadata, encode_metadata, encode_state
from runner.storage.format import hash_of as xxh3
from runner.world.solo import SoloWorld
from tests.storage.states import state_of

Save = Callable[[dict[str, Tensor]], Path]
Boxes = dict[str, tuple[tuple[int, ...], Tensor]]
GB = 10**9

WEIGHTS = {
    "embed.weight": torch.arange(12.0).view(4, 3),
    "steps": torch.tensor(7),
    "mask": torch.tensor([True, False, True]),
    "head.bias": torch.tensor([0.1, -2.5], dtype=torch.bfloat16),
    "empty": torch.empty(0, 3),
}


@pytest.fixture
def saved(tmp_path: Path) -> Save:
    """Save a model's tensors beside those of an optimizer; returns the checkpoint's directory."""

    def save(weights: dict[str, Tensor]) -> Path:
        tensors = {f"model.{name}": tensor for name, tensor in weights.items()}
        state = state_of({**tensors, "optimizer.embed.weight.exp_avg": torch.ones(4, 3)})
        checkpointer = Sharded().open(tmp_path, SoloWorld(torch.device("cpu")))
        checkpointer.save(state, progress=Progress(step=1, position=1), metrics={})
        return tmp_path / "checkpoints" / "step_1"

    return save


def exported(checkpoint: Path, out: Path, *, dtype: str | None = None, max_shard_bytes: int = 5 * GB) -> Path:
    with fresh_directory(out) as partial:
        export_weights(checkpoint, partial, dtype=dtype, max_shard_bytes=max_shard_bytes)
    return out


def read(directory: Path) -> dict[str, Tensor]:
    return {name: tensor for file in directory.glob("*.safetensors") for name, tensor in load_file(file).items()}


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape), name
        assert torch.equal(found[name], tensor), name


def test_an_export_holds_every_weight_bit_for_bit_and_nothing_of_the_optimizer(saved: Save, tmp_path: Path) -> None:
    out = exported(saved(WEIGHTS), tmp_path / "out")
    assert [path.name for path in out.iterdir()] == ["model.safetensors"]
    assert_same(read(out), WEIGHTS)


def test_the_file_says_that_it_is_of_torch_as_transformers_demands(saved: Save, tmp_path: Path) -> None:
    out = exported(saved(WEIGHTS), tmp_path / "out")
    with safe_open(out / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_every_tensor_is_aligned_to_its_element(saved: Save, tmp_path: Path) -> None:
    file = (exported(saved(WEIGHTS), tmp_path / "out") / "model.safetensors").read_bytes()
    length = int.from_bytes(file[:8], "little")
    header = json.loads(file[8 : 8 + length])
    sizes = {"F32": 4, "I64": 8, "BF16": 2, "BOOL": 1}
    for name in WEIGHTS:
        assert (8 + length + header[name]["data_offsets"][0]) % sizes[header[name]["dtype"]] == 0, name


@pytest.mark.parametrize("dtype", ["float64", "bfloat16", "float16"])
def test_only_floating_tensors_are_converted(saved: Save, tmp_path: Path, dtype: str) -> None:
    out = exported(saved(WEIGHTS), tmp_path / "out", dtype=dtype)
    to = getattr(torch, dtype)
    assert_same(read(out), {name: one.to(to) if one.is_floating_point() else one for name, one in WEIGHTS.items()})


def test_a_long_tensor_is_converted_whole(saved: Save, tmp_path: Path) -> None:
    long = torch.arange(2.0**21 + 5)  # more than two pieces
    out = exported(saved({"long": long}), tmp_path / "out", dtype="float64")
    assert_same(read(out), {"long": long.double()})


def test_a_weight_that_would_become_infinite_is_refused(saved: Save, tmp_path: Path) -> None:
    checkpoint = saved({"scale": torch.tensor([1.0, -7e4, math.inf])})
    with pytest.raises(CheckpointError) as caught:
        exported(checkpoint, tmp_path / "out", dtype="float16")
    assert str(caught.value) == (
        "scale holds 70000, but the largest float16 is 65504. Export another dtype: --dtype bfloat16."
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "checkpoints",
        "provenance.json",
    ]  # nothing half written
    out = exported(saved({"scale": torch.tensor([1.0, math.inf])}), tmp_path / "out", dtype="float16")
    assert read(out)["scale"].tolist() == [1.0, math.inf]  # what was infinite already is what was trained


# float32: 40, 40, 40, 80 and 8 bytes.
FIVE = {name: torch.full((size,), float(size)) for name, size in (("a", 10), ("b", 10), ("c", 10), ("d", 20), ("e", 2))}


def test_shards_are_cut_where_hugging_face_cuts_them(saved: Save, tmp_path: Path) -> None:
    out = exported(saved(FIVE), tmp_path / "out", max_shard_bytes=80)
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert index["metadata"] == {"total_size": 208}
    file = "model-0000{}-of-00004.safetensors".format
    assert index["weight_map"] == {"a": file(1), "b": file(1), "c": file(2), "d": file(3), "e": file(4)}
    for name, shard in index["weight_map"].items():
        assert torch.equal(load_file(out / shard)[name], FIVE[name])
    hub = pytest.importorskip("huggingface_hub")
    theirs = hub.split_torch_state_dict_into_shards(FIVE, max_shard_size=80)
    assert (theirs.metadata, theirs.tensor_to_filename) == (index["metadata"], index["weight_map"])


def test_a_tensor_larger_than_a_shard_has_one_of_its_own(saved: Save, tmp_path: Path) -> None:
    out = exported(saved(FIVE), tmp_path / "out", max_shard_bytes=1)
    assert len(list(out.glob("model-*-of-00005.safetensors"))) == 5
    assert_same(read(out), FIVE)


def test_parts_that_several_ranks_wrote_are_put_together(tmp_path: Path) -> None:
    """Rows over two ranks, columns over two ranks, a whole scalar: as sharding strategies leave them."""
    rows, columns, scalar = torch.arange(15.0).view(5, 3), torch.arange(8.0).view(2, 4), torch.tensor(3.0)
    parts: list[Boxes] = [
        {"model.rows": ((0, 0), rows[:3]), "model.columns": ((0, 0), columns[:, :2]), "model.scalar": ((), scalar)},
        {"model.rows": ((3, 0), rows[3:]), "model.columns": ((0, 2), columns[:, 2:])},
    ]
    out = exported(committed(tmp_path, parts), tmp_path / "out")
    assert_same(read(out), {"rows": rows, "columns": columns, "scalar": scalar})


def committed(run: Path, parts: list[Boxes]) -> Path:
    """A checkpoint of so many ranks; each gives boxes of tensors by name, with their offsets."""
    (run / "checkpoints").mkdir()
    partial = begin(run / "checkpoints", 1)
    chunks: dict[str, list[Chunk]] = {}
    files = {}
    for rank, boxes in enumerate(parts):
        name = f"rank_{rank}.safetensors"
        save_file({key: box.contiguous() for key, (_, box) in boxes.items()}, partial / name)
        data = (partial / name).read_bytes()
        length = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + length])
        files[name] = File(bytes=len(data), xxh3_128="0" * 32)
        for key, (offset, box) in boxes.items():
            start, end = (8 + length + place for place in header[key]["data_offsets"])
            digest = xxh3(data[start:end])
            chunks.setdefault(key, []).append(Chunk(offset, tuple(box.shape), name, key, start, end - start, digest))
    metadata = {key: TensorMetadata("float32", _extent(found), tuple(found)) for key, found in chunks.items()}
    manifest = Manifest(step=1, position=1, world_size=len(parts), serial=1, metrics={}, files=files)
    return commit(partial, manifest, {METADATA: encode_metadata(metadata), STATE: encode_state({})})


def _extent(chunks: list[Chunk]) -> tuple[int, ...]:
    ends = [[start + length for start, length in zip(one.offset, one.shape, strict=True)] for one in chunks]
    return tuple(max(end) for end in zip(*ends, strict=True))


def test_a_corrupted_weight_is_not_exported(saved: Save, tmp_path: Path) -> None:
    checkpoint = saved(FIVE)
    file = checkpoint / "rank_0.safetensors"
    twenty = torch.tensor(20.0).numpy().tobytes()
    file.write_bytes(file.read_bytes().replace(twenty, bytes(4), 1))
    with pytest.raises(CheckpointError) as caught:
        exported(checkpoint, tmp_path / "out")
    assert f"{file} is corrupted: tensor 'model.d'" in str(caught.value)
    assert str(caught.value).endswith("Export another checkpoint of the run: --step N.")
    assert not (tmp_path / "out").exists()


def test_a_missing_file_is_told(saved: Save, tmp_path: Path) -> None:
    checkpoint = saved(FIVE)
    (checkpoint / "rank_0.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"rank_0.safetensors is missing. Export another checkpoint of the run"):
        models_in(checkpoint)


def test_a_payload_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    checkpoint = committed(tmp_path, [{"model.w": ((0,), torch.ones(2))}])
    (checkpoint / "rank_0.safetensors").unlink()
    (checkpoint / "rank_0.safetensors").mkdir()
    with pytest.raises(CheckpointError, match=r"rank_0.safetensors is not a regular file\. .* Export another"):
        exported(checkpoint, tmp_path / "out")


def test_an_empty_directory_is_taken_and_a_full_one_is_not(saved: Save, tmp_path: Path) -> None:
    checkpoint, out = saved(FIVE), tmp_path / "out"
    out.mkdir()
    exported(checkpoint, out)
    with pytest.raises(CheckpointError) as caught:
        exported(checkpoint, out)
    assert str(caught.value) == f"{out} is not empty. Export into a new directory: --out PATH."
    with pytest.raises(CheckpointError, match=r"model.safetensors is a file\. Export into a new directory"):
        exported(checkpoint, out / "model.safetensors")


def test_what_the_file_system_refuses_is_told_and_leaves_nothing(saved: Save, tmp_path: Path) -> None:
    checkpoint = saved(FIVE)
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError) as caught:
        exported(checkpoint, tmp_path / "file" / "out")
    assert str(caught.value).startswith(f"cannot export to {tmp_path / 'file' / 'out'}: ")
    assert str(caught.value).endswith("Not a directory. Choose another directory: --out PATH.")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))  # a disk that is full (Python ignores SIGXFSZ)
    try:
        with pytest.raises(CheckpointError, match="File too large"):
            exported(checkpoint, tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoints", "file", "provenance.json"]


MEASURE = """
import resource, sys
from pathlib import Path
from runner.storage.export import export_weights, fresh_directory
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
checkpoint, out, limit = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
with fresh_directory(out / "warm") as path:
    export_weights(Path(sys.argv[4]), path, dtype="bfloat16", max_shard_bytes=limit)
before = peak()
with fresh_directory(out / "out") as path:
    export_weights(checkpoint, path, dtype="bfloat16", max_shard_bytes=limit)
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss counts KiB on Linux")
@pytest.mark.parametrize("max_shard_bytes", [5 * GB, 32 << 20])
def test_memory_is_bounded_by_one_tensor(saved: Save, tmp_path: Path, max_shard_bytes: int) -> None:
    """Eight tensors of 32 MiB: what is held at a time is one of them, and pieces of it being converted."""
    (tmp_path / "small").mkdir()
    small = committed(tmp_path / "small", [{"model.w": ((0,), torch.ones(2))}])
    checkpoint = saved({f"w{index}": torch.ones(8 << 20) for index in range(8)})
    argv = [str(checkpoint), str(tmp_path / "out"), str(max_shard_bytes), str(small)]
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, *argv], capture_output=True, text=True, timeout=120, check=True
    )
    assert int(done.stdout) <= (32 + 16) << 20
