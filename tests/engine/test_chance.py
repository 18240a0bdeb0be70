"""Seeds over whole runs: equal where ranks must agree, apart where they must not; and what cannot be deterministic."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Ended

CHANCE = ["train", "points", "loss._target_=user_hooks.chance.loss", "run.steps=1", "eval.every_steps=null"]
PAIR = ["strategy=ddp", "hardware.processes=2"]


def found(project: Path, rank: int = 0) -> Any:
    path = project / f"chance_{rank}.json"
    content = json.loads(path.read_text())
    path.unlink()
    return content


def test_ranks_begin_with_equal_weights_and_draw_apart(runner: Callable[..., Ended], project: Path) -> None:
    runner(*CHANCE, *PAIR, "strategy.init_sync=false")
    one, other = found(project, 0), found(project, 1)
    assert one["weights"] == other["weights"]
    for name in ("mask", "python", "numpy"):
        assert one[name] != other[name], name
    runner(*CHANCE)
    assert found(project)["weights"] == one["weights"], "on any number of ranks"


def test_another_seed_changes_all_of_it(runner: Callable[..., Ended], project: Path) -> None:
    runner(*CHANCE)
    one = found(project)
    runner(*CHANCE, "run.seed=1")
    other = found(project)
    assert all(one[name] != other[name] for name in ("weights", "mask", "python", "numpy"))


@pytest.mark.parametrize("place", [[], PAIR])
def test_an_operation_without_a_deterministic_form_is_named(
    runner: Callable[..., Ended], project: Path, place: Any
) -> None:
    unordered = ["train", "points", "loss._target_=user_hooks.chance.unordered_loss", *place]
    ended = runner(*unordered, "run.deterministic=true", f"run.dir={project / 'run'}", code=4)
    assert "run.deterministic=true, but put_ has no deterministic implementation on this device" in ended.stderr
    assert "torch.use_deterministic_algorithms(False)" in ended.stderr
    assert "or train with run.deterministic=false" in ended.stderr


@pytest.mark.parametrize(
    ("chosen", "seen"), [({}, ":4096:8"), ({"CUBLAS_WORKSPACE_CONFIG": ":16:8"}, ":16:8")], ids=["ours", "theirs"]
)
def test_a_deterministic_run_has_the_workspace_that_cudas_matrix_library_asks_for(
    runner: Callable[..., Ended], project: Path, chosen: Any, seen: str
) -> None:
    runner(*CHANCE, "run.deterministic=true", env=chosen)
    assert found(project)["workspace"] == seen
    runner(*CHANCE, env={})
    assert found(project)["workspace"] is None
