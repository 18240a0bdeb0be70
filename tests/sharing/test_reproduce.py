"""A run is trained again from its record; what differs is named before, how far the two agree after."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from runner.config.store import load_yaml
from tests.conftest import Ended

Runner = Callable[..., Ended]


@pytest.fixture
def trained(runner: Runner) -> Path:
    return runner("train", "points", "run.steps=6", "run.stop_at_step=4", "optimizer.lr=0.02").run_dir.path


def test_a_run_is_trained_again_bit_for_bit(runner: Runner, trained: Path, project: Path) -> None:
    (project / "recipes" / "points.yaml").unlink()  # the record is enough
    ended = runner("reproduce", str(trained), "--dir", "again")
    said = ended.stdout.splitlines()
    assert said[0] == str(project / "again")
    assert re.fullmatch(r"metrics: \d+ values up to step 4 are equal, bit for bit", said[1])
    assert re.fullmatch(r"weights: \d+ tensors of step_4 are equal, bit for bit", said[2])
    assert said[3] == "reproduced: the two runs are equal, bit for bit"
    losses = [
        [
            line["train/loss"]
            for line in map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
            if "train/loss" in line
        ]
        for run in (trained, project / "again")
    ]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 4
    declared = load_yaml((project / "again" / "spec.yaml").read_text())["config"]
    assert (declared["optimizer"]["lr"], declared["run"]["steps"]) == (0.02, 6)
    assert runner("reproduce", str(trained), "--dir", "again", code=2).stderr.count("exists already") == 1


def test_a_run_in_two_attempts_is_reproduced_in_one(runner: Runner, trained: Path) -> None:
    runner("resume", str(trained))
    said = runner("reproduce", str(trained)).stdout
    assert "up to step 6 are equal" in said
    assert "of step_6 are equal" in said


def test_what_differs_is_told_with_step_size_and_exit_code(runner: Runner, trained: Path) -> None:
    """The record of the first run is bent in one value."""
    metrics = trained / "metrics.jsonl"
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    bent = next(line for line in lines if line["step"] == 3 and "train/loss" in line)
    bent["train/loss"] += 0.5
    metrics.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    ended = runner("reproduce", str(trained), "--dir", "again", code=13)
    assert "metrics: they differ from step 3 on (train/loss: " in ended.stdout
    assert "at most by 0.5, in train/loss of step 3" in ended.stdout
    assert "of step_4 are equal, bit for bit" in ended.stdout
    assert "not reproduced: " in ended.stderr
    assert "run.deterministic=true rules that out" in ended.stderr


def test_a_hook_that_has_changed_is_refused_by_name_and_versions_are_told(
    runner: Runner, trained: Path, project: Path
) -> None:
    hooks = project / "user_hooks" / "points.py"
    hooks.write_text(hooks.read_text() + "# another line\n")
    record = trained / "provenance.json"
    attempts = json.loads(record.read_text())
    attempts[-1]["versions"]["torch"] = "1.0"
    record.write_text(json.dumps(attempts))
    said = runner("reproduce", str(trained), "--dir", "again", code=2).stderr
    assert f"hooks: {hooks} is not the source that the run was trained with. Put that back, or train" in said
    assert not (project / "again").exists()
    ended = runner("reproduce", str(trained), "--dir", "again", "--changed-hooks")
    assert f"warning: {hooks} is not the source that the run was trained with." in ended.stderr
    assert "warning: torch was 1.0 and is " in ended.stderr


def test_attempts_that_were_declared_otherwise_are_told(runner: Runner, trained: Path) -> None:
    runner("resume", str(trained), "optimizer.lr=0.5")
    ended = runner("reproduce", str(trained), code=13)
    assert (
        "spec.yaml differs in optimizer.lr: the new run is trained with spec.attempt_2.yaml from step 0."
        in ended.stderr
    )
    assert "they differ from step 1 on" in ended.stdout


def test_what_cannot_be_reproduced_says_why(runner: Runner, trained: Path, tmp_path: Path) -> None:
    other = {"XDG_STATE_HOME": str(tmp_path / "other")}
    said = runner("reproduce", str(trained), env=other, code=2).stderr
    assert "`runner reproduce` runs the code that it names" in said
    assert f"accept the run, once: runner reproduce {trained} --trust" in said
    said = runner("reproduce", str(trained), "optimizer.lr=1", code=2).stderr
    assert "optimizer.lr: is part of the record: only secrets, which it does not hold, can be given." in said
    for path in (trained / "metrics.jsonl", *(trained / "checkpoints").iterdir()):
        path.rename(tmp_path / path.name)
    said = runner("reproduce", str(trained), code=2).stderr
    assert "has not recorded a step, so there is nothing to compare with" in said


def test_a_secret_is_taken_from_the_command_line_again(runner: Runner, project: Path) -> None:
    hooks = project / "user_hooks" / "points.py"
    hooks.write_text(hooks.read_text().replace("def build_data(", "def build_data(api_key='', ", 1))
    argv = ["points", "run.steps=2", "eval.every_steps=null"]
    run = runner("train", *argv, "+data.api_key=hunter2hunter2").run_dir.path
    said = runner("reproduce", str(run), code=2).stderr
    assert "data.api_key: the value, from the command line, is a secret" in said
    again = runner("reproduce", str(run), "data.api_key=hunter2hunter2", "--dir", "again")
    assert "hunter2hunter2" not in again.stdout + again.stderr + (project / "again" / "spec.yaml").read_text()
