"""A save looks at the names of the checkpoints that there are, and reads no manifest a second time."""

import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from runner.checkpoint.retention import Retention
from runner.checkpoint.sharded import Sharded, ShardedCheckpointer
from runner.protocols import Progress, State
from runner.storage.checkpoints import Checkpoints
from runner.storage.format import File, Manifest, encode_manifest
from runner.storage.history import History
from runner.world.solo import SoloWorld

WORLD = SoloWorld(torch.device("cpu"))
MANY = 2000


@pytest.fixture
def opened() -> Iterator[list[str]]:
    """The checkpoints whose manifests were opened."""
    names: list[str] = []
    watching = [True]

    def hook(event: str, args: tuple[object, ...]) -> None:
        if watching[0] and event == "open" and str(args[0]).endswith("manifest.json"):
            names.append(Path(str(args[0])).parent.name)

    sys.addaudithook(hook)
    yield names
    watching[0] = False


@pytest.fixture
def many(tmp_path: Path) -> Path:
    """A run with manifests of very many checkpoints."""
    files = dict.fromkeys(("metadata.json", "state.json"), File(bytes=0, xxh3_128="0" * 32))
    for step in range(1, MANY + 1):
        path = tmp_path / "checkpoints" / f"step_{step}"
        path.mkdir(parents=True)
        manifest = Manifest(step=step, position=0, world_size=1, serial=step, metrics={}, files=files)
        (path / "manifest.json").write_bytes(encode_manifest(manifest))
    return tmp_path


def save_at(checkpointer: ShardedCheckpointer, step: int) -> None:
    checkpointer.save(State(), progress=Progress(step=step, position=0), metrics={})


def test_a_save_reads_only_the_manifest_that_is_new(many: Path, opened: list[str]) -> None:
    checkpointer = Sharded(retention=Retention(keep_last=None)).open(many, WORLD)
    save_at(checkpointer, MANY + 1)
    assert len(opened) >= MANY  # once in an attempt
    opened.clear()
    started = time.process_time()
    save_at(checkpointer, MANY + 2)
    took = time.process_time() - started
    assert len([name for name in opened if ".partial-" not in name]) <= 1, opened
    assert took < 0.1  # of CPU; two looks at the directory take 0.012 s, and took 0.29 s


def test_looking_for_the_newest_reads_only_the_newest_again(many: Path, opened: list[str]) -> None:
    save_at(Sharded(retention=Retention(keep_last=None)).open(many, WORLD), MANY + 1)
    checkpoints = Checkpoints(many / "checkpoints", WORLD)
    newest = many / "checkpoints" / f"step_{MANY + 1}"
    assert checkpoints.latest() == newest
    opened.clear()
    assert checkpoints.latest() == newest
    assert opened == [newest.name]


def test_what_changed_on_disk_is_seen(tmp_path: Path, save: Callable[..., Path]) -> None:
    """A checkpoint that was dropped, replaced, or committed since."""
    history = History(tmp_path / "checkpoints")
    first, second = save(1), save(2)
    assert list(history.manifests()) == [second, first]
    save(1)
    assert list(history.manifests()) == [first, second]
    first.rename(first.with_name("step_1.partial-0a1b2c3d"))
    assert list(history.manifests()) == [second]
    assert history.newest() == second
