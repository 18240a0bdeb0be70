"""`runner train`: a directory of its own, everything written before the launch, and the exit code of what happened."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from runner.config import store


def test_a_run_is_frozen_before_it_is_launched(runner: Callable[..., tuple[int, str, str]], project: Path) -> None:
    code, out, _ = runner("train", "tiny", "run.steps=7")
    path = Path(out.splitlines()[-1])
    assert code == 0
    assert path.parent.parent == project / "outputs" / "tiny"
    assert json.loads((path / "noted.json").read_text())["spec"] == "spec.yaml"
    assert store.read(path / "spec.yaml").run.steps == 7
    assert json.loads((path / "status.json").read_text())["state"] == "done"
    assert json.loads((path / "provenance.json").read_text())[0]["command"] == [
        "runner",
        "train",
        "tiny",
        "run.steps=7",
    ]
    assert {page.name for page in (path / ".hydra").iterdir()} == {"config.yaml", "hydra.yaml", "overrides.yaml"}


@pytest.mark.parametrize(
    ("fail", "code", "state", "words"),
    [("failed", 1, "failed", "rank 0: it broke"), ("interrupted", 130, "preempted", "stopped at step 3")],
)
def test_how_a_run_ended_is_told_three_ways(
    runner: Callable[..., tuple[int, str, str]], fail: str, code: int, state: str, words: str
) -> None:
    left, out, err = runner("train", "tiny", f"launch.fail={fail}")
    assert left == code
    assert words in err
    assert "Traceback" not in err
    assert json.loads((Path(out.splitlines()[-1]) / "status.json").read_text())["state"] == state


def test_a_directory_that_is_named_must_not_exist(runner: Callable[..., tuple[int, str, str]], project: Path) -> None:
    assert runner("train", "tiny", "run.dir=a/b")[1].splitlines()[-1] == str(project / "a" / "b")
    code, _, err = runner("train", "tiny", "run.dir=a/b")
    assert code == 2
    assert f"run.dir: {project / 'a' / 'b'} exists already. Choose another directory" in err


def test_a_wrong_declaration_leaves_no_directory(runner: Callable[..., tuple[int, str, str]], project: Path) -> None:
    code, _, err = runner("train", "tiny", "optimizer.lr=abc", "modle.width=3")
    assert code == 2
    assert "optimizer.lr: 'abc' must be a number" in err
    assert "modle.width: there is no such key" in err
    assert not (project / "outputs").exists()


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["train"], "RECIPE: must be given: runner train RECIPE. See: runner train --help"),
        (["train", "tniy"], "there is no recipe 'tniy'. Did you mean tiny?"),
        (
            ["train", "tiny", "twice"],
            "'twice' is neither a flag nor an override (key=value), and RECIPE is already 'tiny'.",
        ),
        (["train", "tiny", "--nope"], "unrecognized arguments: --nope. See: runner train --help"),
        (["train", "tiny", "--resolve"], "--resolve needs --cfg"),
        (["train", "tiny", "-cd", "nowhere"], "nowhere is not a directory"),
        (
            ["train", "tiny", "hydra.run.dir=x"],
            "hydra.run.dir: the runner creates output directories itself. Use run.dir.",
        ),
        (
            ["train", "tiny", "-m", "hydra.sweep.dir=x"],
            "hydra.sweep.dir: the runner creates output directories itself.",
        ),
        (["tran", "tiny"], "there is no command 'tran'. Did you mean train?"),
        (["recipes", "all"], "unrecognized arguments: all. See: runner recipes --help"),
    ],
)
def test_a_command_line_that_cannot_be_read_is_told(
    runner: Callable[..., tuple[int, str, str]], argv: list[str], words: str
) -> None:
    code, _, err = runner(*argv)
    assert code == 2
    assert words in err
    assert "Traceback" not in err
