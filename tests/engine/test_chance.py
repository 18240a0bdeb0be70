"""Deterministic runs: what has no deterministic form is named, and what CUDA's library asks for is set."""

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
