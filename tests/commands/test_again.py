"""`runner train --from DIR`: a new run with the declaration of another one."""

from collections.abc import Callable
from pathlib import Path

import yaml

from tests.conftest import Ended


def test_it_trains_the_same_again_in_a_directory_of_its_own(runner: Callable[..., Ended], project: Path) -> None:
    first = runner("train", "points", "run.steps=6", "optimizer.lr=0.02", "run.stop_at_step=4", "run.dir=first")
    (project / "recipes" / "points.yaml").unlink()
    again = runner("train", "--from", "first")
    assert again.run_dir.path.is_relative_to(project / "outputs" / "points")
    assert [line["step"] for line in again.metrics()][-1] == 6
    assert again.metrics()[:4] == first.metrics()[:4]
    changed = runner("train", "--from", "first", "run.dir=changed", "optimizer=sgd", "optimizer.lr=0.1")
    declared = yaml.safe_load((project / "changed" / "spec.yaml").read_text())
    assert declared["config"]["optimizer"]["_target_"] == "runner.optimizer.sgd.SGD"
    assert declared["config"]["run"]["steps"] == 6
    assert changed.metrics()[0]["train/loss"] == first.metrics()[0]["train/loss"]


def test_what_cannot_be_is_told(runner: Callable[..., Ended], project: Path) -> None:
    runner("train", "points", "run.steps=1", "run.dir=first")

    def fault(*words: str) -> str:
        ended = runner("train", *words, code=2)
        assert sorted(path.name for path in project.iterdir() if path.name == "outputs") == []
        return ended.stderr

    assert "outputs is not a directory" in fault("--from", "outputs")
    assert "'points' is neither a flag nor an override (key=value)" in fault("points", "--from", "first")
    assert "takes a recipe, not the record of a run" in fault("--from", "first", "-m", "run.seed=1,2")
    assert "first exists already" in fault("--from", "first", "run.dir=first")
    assert "there is no such key" in fault("--from", "first", "optimizer.lrr=1")
    spec = project / "first" / "spec.yaml"
    spec.write_text(spec.read_text().replace("steps: 1", "steps: 2"))
    assert "runner train --from" in (question := fault("--from", "first"))
    assert "--trust" in question
    assert runner("train", "--from", "first", "--trust", "run.dir=second").metrics()[-1]["step"] == 2


def test_a_frozen_declaration_says_so(runner: Callable[..., Ended], project: Path) -> None:
    runner("train", "points", "run.steps=1", "run.dir=first")
    ended = runner("check", "first/spec.yaml", code=2)
    assert f"To train a new run as it declares: runner train --from {project / 'first'}." in ended.stderr
