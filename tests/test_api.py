"""What a Python program calls does what the command does, and leaves the program as it was."""

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import runner as package
from runner import RunRecord, compose, load_run, resume, train
from runner.errors import RunFailed, SpecError
from runner.protocols import Outcome
from tests.conftest import CHECKOUT, Ended

SHORT = ["run.steps=6", "eval.every_steps=3", "eval.at_end=false", "checkpoint.every_steps=4"]


@pytest.fixture
def inside(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The project, as the working directory of this process."""
    monkeypatch.chdir(project)
    return project


def process_state() -> Any:
    handlers = {number: signal.getsignal(number) for number in signal.valid_signals()}
    return handlers, signal.pthread_sigmask(signal.SIG_BLOCK, ()), list(sys.argv), list(sys.path)


def test_a_program_trains_and_resumes_as_the_command_does(runner: Callable[..., Ended], inside: Path) -> None:
    expected, before = runner("train", "points", *SHORT), process_state()
    half = train("points", [*SHORT, "run.stop_at_step=4"])
    assert (half.outcome, half.status.step) == (Outcome.DONE, 4)
    run = resume(half.path, ["strategy=ddp", "hardware.processes=2"])
    assert process_state() == before
    assert run.path == half.path
    assert run.path.parent.parent == inside / "outputs" / "points"
    for name in ("step", "train/loss", "train/grad_norm", "eval/loss"):
        ours, theirs = run.metrics[name], [line.get(name) for line in expected.metrics()]
        assert [value is None for value in ours] == [value is None for value in theirs]
        numbers = [value for value in theirs if value is not None]
        assert [value for value in ours if value is not None] == pytest.approx(numbers, rel=1e-5)
    assert None in run.metrics["eval/loss"]
    assert [saved.step for saved in run.checkpoints] == [4, 6]
    assert [saved.world_size for saved in run.checkpoints] == [1, 2]
    assert [attempt["command"][:2] for attempt in run.attempts] == [["runner", "train"], ["runner", "resume"]]
    assert (run.config["hardware"]["processes"], run.source.choices["strategy"]) == (2, "ddp")


def test_errors_are_those_of_the_project(inside: Path) -> None:
    with pytest.raises(SpecError) as wrong:
        train("points", ["optimizer.lr=abc", "modle.width=3"])
    assert {fault.key for fault in wrong.value.faults} == {"optimizer.lr", "modle.width"}
    assert not (inside / "outputs").exists()
    with pytest.raises(RunFailed, match="ZeroDivisionError: the hook divides by zero") as failed:
        train("points", ["loss._target_=user_hooks.points.failing_loss", "run.dir=failed"])
    assert failed.value.exit_code == 1
    run = load_run("failed")
    assert run.outcome is Outcome.FAILED
    assert [failure.error for failure in run.failures] == ["ZeroDivisionError"]


def test_a_declaration_is_composed_and_checked_and_nothing_is_begun(inside: Path) -> None:
    before = process_state()
    spec = compose("points", ["optimizer.lr=0.25", "run.steps=7"])
    assert (spec.run.steps, spec.config["optimizer"]["lr"]) == (7, 0.25)
    with pytest.raises(SpecError, match=r"batch\.items"):
        compose("points", ["batch.items=0"])
    with pytest.raises(SpecError, match="does not take 'widht'"):
        compose("points", ["+model.widht=3"])
    assert process_state() == before
    assert not (inside / "outputs").exists()


def test_a_recipe_of_strangers_is_not_imported_unless_that_is_said(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path / "mine")
    (project / "stranger_code.py").write_text("print('imported')\ndef build(): ...\n")
    recipe, own = project / "recipes" / "points.yaml", ["model._target_=stranger_code.build", "~model.dropout"]
    with pytest.raises(SpecError, match="is outside the working directory"):
        compose(recipe, own)
    assert "stranger_code" not in sys.modules
    found = compose(recipe, own, imports=True).model
    assert found is not None
    assert found.target == "stranger_code.build"
    monkeypatch.delitem(sys.modules, "stranger_code")


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ("run.steps=3", r"'run.steps=3' must be a list: \['run.steps=3'\]"),
        (["fsdp"], "'fsdp' is not an override"),
        (["--cfg=job"], "'--cfg=job' is not an override"),
        (["hydra.run.dir=x"], "the runner creates output directories itself. Use run.dir."),
    ],
)
def test_what_cannot_be_an_override_is_told(overrides: Any, words: str) -> None:
    for call in (compose, train):
        with pytest.raises(SpecError, match=words):
            call("digits", overrides)


def test_a_directory_of_groups_must_be_there(tmp_path: Path) -> None:
    for call in (compose, train):
        with pytest.raises(SpecError, match="nowhere is not a directory"):
            call("digits", config_dirs=[tmp_path / "nowhere"])


def test_what_is_not_a_run_is_told(tmp_path: Path) -> None:
    for call in (load_run, resume):
        with pytest.raises(SpecError, match="is not a run's directory"):
            call(tmp_path)


def test_hooks_that_import_the_package_import_nothing_else() -> None:
    said = "import sys, runner; runner.Data; print([name for name in sys.modules if name in ('runner.api', 'yaml')])"
    done = subprocess.run([sys.executable, "-c", said], cwd=CHECKOUT, capture_output=True, timeout=60, check=True)
    assert done.stdout == b"[]\n"
    assert set(dir(package)) >= {"train", "compose", "resume", "load_run"}
    assert package.RunRecord is RunRecord
    with pytest.raises(AttributeError, match="has no attribute 'trian'"):
        package.trian  # noqa: B018
