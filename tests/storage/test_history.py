"""Which checkpoint is the newest, and how one goes back to an older one."""

from collections.abc import Callable
from pathlib import Path

import pytest
from torch import Tensor

from runner.checkpoint.retention import Retention
from runner.checkpoint.sharded import Sharded
from runner.errors import CheckpointError
from runner.protocols import Progress, State
from runner.storage.checkpoints import Checkpoints
from runner.storage.history import choose, find
from runner.world.solo import SoloWorld

Save = Callable[..., Path]


def test_without_checkpoints_there_is_no_latest(checkpoints: Checkpoints) -> None:
    assert checkpoints.latest() is None


def test_steps_are_numbers_not_words(checkpoints: Checkpoints, save: Save) -> None:
    save(9)
    path = save(10)
    assert checkpoints.latest() == path


def test_the_newest_is_the_last_committed_not_the_highest_step(checkpoints: Checkpoints, save: Save) -> None:
    save(20)
    save(40)
    path = save(30)  # the run went back to 20
    assert checkpoints.latest() == path


def test_a_step_that_is_reached_again_replaces_the_older_commit(
    checkpoints: Checkpoints, save: Save, blank: State[Tensor]
) -> None:
    save(1)
    save(2)
    path = save(1)
    assert checkpoints.latest() == path
    assert sorted(one.name for one in path.parent.iterdir()) == ["step_1", "step_2"]
    checkpoints.open(path).read(blank)
    assert blank.values == {"step": 1}


def test_find_names_what_there_is(tmp_path: Path, save: Save) -> None:
    path = save(1)
    save(2)
    assert find(tmp_path / "checkpoints", "step_1") == path
    for name in ("step_3", "3", "../checkpoints/step_1"):
        with pytest.raises(CheckpointError) as caught:
            find(tmp_path / "checkpoints", name)
        assert str(caught.value) == (
            f"{tmp_path}/checkpoints has no checkpoint {name!r}. Committed checkpoints, newest first: step_2, step_1."
        )


def test_find_offers_an_older_one_for_a_corrupted_one(tmp_path: Path, save: Save) -> None:
    save(1)
    (save(2) / "state.json").unlink()
    save(3)
    with pytest.raises(CheckpointError, match=r"step_2/state.json is missing. .* --from step_1."):
        find(tmp_path / "checkpoints", "step_2")


def test_what_was_chosen_stays_the_newest(
    tmp_path: Path, checkpoints: Checkpoints, save: Save, blank: State[Tensor], world: SoloWorld
) -> None:
    path = save(1)
    save(2)
    assert choose(tmp_path / "checkpoints", "step_1") == path
    assert checkpoints.latest() == path
    checkpoints.open(path).read(blank)
    again = Sharded(retention=Retention(keep_last=None)).open(tmp_path, world)
    again.save(State(), progress=Progress(step=3, position=0), metrics={})
    assert checkpoints.latest() == path.with_name("step_3")


def test_choosing_gets_past_a_manifest_that_cannot_be_read(
    tmp_path: Path, checkpoints: Checkpoints, save: Save
) -> None:
    path = save(1)
    (save(2) / "manifest.json").write_text("")
    with pytest.raises(CheckpointError, match=r"--from step_1"):
        checkpoints.latest()
    choose(tmp_path / "checkpoints", "step_1")
    assert checkpoints.latest() == path
