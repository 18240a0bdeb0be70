"""A pickle planted in a checkpoint is never loaded, whatever file it stands in: resume and export run no code of it."""

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Ended
from tests.storage.forging import plant

READ_BY_OTHERS = [
    ".metadata",  # torch.distributed.checkpoint
    "__0_0.distcp",
    "model.pt",
    "optimizer.pt",
    "pytorch_model.bin",  # transformers, Accelerate
    "optimizer.bin",
    "random_states_0.pkl",
    "mp_rank_00_model_states.pt",  # DeepSpeed
    "zero_pp_rank_0_mp_rank_00_optim_states.pt",
]
OURS = ["rank_0.safetensors", "state.json", "metadata.json", "manifest.json"]


class Payload:
    """Makes a directory in whoever unpickles it."""

    def __init__(self, mark: Any) -> None:
        self.mark = str(mark)

    def __reduce__(self) -> Any:
        return os.mkdir, (self.mark,)


@pytest.fixture
def planted(tmp_path: Path) -> Any:
    """The pickle, in the protocol that needs no newer reader, and what it leaves if it is loaded."""
    mark = tmp_path / "code_ran"
    data = pickle.dumps(Payload(mark), protocol=2)
    pickle.loads(data)
    mark.rmdir()  # it would work
    return data, mark


@pytest.fixture
def stopped(runner: Callable[..., Ended]) -> Any:
    """A run with commits at steps 2 and 3 of ten, and its newest checkpoint."""
    run = runner("train", "points", "checkpoint.every_steps=2", "checkpoint.keep_last=9", "run.stop_at_step=3").run_dir
    return run, run.checkpoints / "step_3"


def test_files_that_other_programs_would_load_are_not_looked_at(
    runner: Callable[..., Ended], stopped: Any, planted: Any
) -> None:
    run, checkpoint = stopped
    data, mark = planted
    for name in READ_BY_OTHERS:
        (checkpoint / name).write_bytes(data)
    ended = runner("resume", str(run.path))
    assert run.read_status()["state"] == "done"
    assert ended.metrics() == runner("train", "points", "checkpoint.every_steps=2").metrics()
    runner("export", str(run.path), "--step", "3")
    assert not mark.exists()


SAID = {
    "rank_0.safetensors": "metadata.json is corrupted: its tensors overlap in 'rank_0.safetensors', leave gaps, or end",
    "state.json": "state.json is corrupted: 'utf-8' codec can't decode byte 0x80 in position 0",
    "metadata.json": "metadata.json is corrupted: 'utf-8' codec can't decode byte 0x80 in position 0",
    "manifest.json": "manifest.json is corrupted: it does not match the hash of itself",
}


@pytest.mark.parametrize("name", OURS)
def test_a_pickle_in_place_of_one_of_our_files_is_refused(
    runner: Callable[..., Ended], stopped: Any, planted: Any, name: str
) -> None:
    run, checkpoint = stopped
    data, mark = planted
    if name == "manifest.json":
        (checkpoint / name).write_bytes(data)
    else:
        plant(checkpoint, name, data)
    said = runner("resume", str(run.path), code=8).stderr
    assert f"{checkpoint}/{SAID[name]}" in said
    assert "An older checkpoint is intact; continue from it: --from step_2." in said
    exported = runner("export", str(run.path), "--step", "3", code=0 if name == "state.json" else 8)
    assert "is corrupted" in exported.stderr or name == "state.json"  # an export does not open it
    assert not mark.exists()


def test_a_declaration_that_would_construct_an_object_is_refused(
    runner: Callable[..., Ended], stopped: Any, tmp_path: Path
) -> None:
    run, _ = stopped
    mark = tmp_path / "code_ran"
    run.spec.write_text(run.spec.read_text() + f"planted: !!python/object/apply:os.mkdir ['{mark}']\n")
    said = runner("resume", str(run.path), code=1).stderr
    assert f"{run.spec} is damaged: it is not YAML (could not determine a constructor for the tag" in said
    assert not mark.exists()
