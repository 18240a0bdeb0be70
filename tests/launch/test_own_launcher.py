"""A launcher that a user wrote, one class and one YAML file in their own directory, submits a run and returns.

Its files are those that docs/own_launcher.md shows.
"""

import importlib.util
import os
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from machines import wait_for

from runner.config.run_dir import RunDir
from runner.errors import Interrupted
from tests.docs.test_commands import CHECKOUT, FILE

DELAY_S = 1.0


@pytest.fixture(autouse=True)
def files_of_the_page(project: Path) -> None:
    """What the page shows, in the user's project."""
    for name, content in FILE.findall((CHECKOUT / "docs" / "own_launcher.md").read_text()):
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_text(content)


@pytest.fixture
def submit(runner: Callable[..., Any]) -> Iterator[Callable[..., tuple[int, RunDir]]]:
    """Submit a run of `points`: the process of its job, and its directory."""
    pids: list[int] = []

    def start(*overrides: str) -> tuple[int, RunDir]:
        ended = runner("train", "points", "launch=background", *overrides)
        name, directory = ended.stdout.splitlines()[-2:]
        found = re.fullmatch(r"submitted as process (\d+)", name)
        assert found, ended.stdout
        pids.append(int(found[1]))
        return pids[-1], RunDir(Path(directory))

    yield start
    for pid in pids:
        try:
            os.killpg(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


def wait_for_state(run_dir: RunDir, *states: str) -> None:
    wait_for(lambda: run_dir.read_status()["state"] in states, f"state {states}", timeout_s=90)


@pytest.mark.parametrize(
    "processes",
    [pytest.param([], marks=pytest.mark.exhaustive), ["strategy=ddp", "hardware.processes=2"]],
    ids=["one", "two"],
)
def test_a_submitted_run_is_queued_then_running_then_done(
    submit: Callable[..., tuple[int, RunDir]], processes: list[str]
) -> None:
    rarely = ["eval.every_steps=100", "checkpoint.every_steps=100", "log.every_steps=10"]
    _, run_dir = submit(f"launch.delay_s={DELAY_S}", "run.steps=400", *rarely, *processes)
    assert run_dir.read_status() == {"state": "queued", "step": 0, "metrics": {}}
    wait_for_state(run_dir, "running", "done")
    wait_for_state(run_dir, "done")
    assert run_dir.read_status()["step"] == 400


def test_a_submitted_run_that_fails_says_so_in_its_directory(submit: Callable[..., tuple[int, RunDir]]) -> None:
    _, run_dir = submit("loss._target_=user_hooks.points.failing_loss")
    wait_for_state(run_dir, "failed", "done")
    assert run_dir.read_status()["state"] == "failed"
    log = run_dir.path / "job.log"
    wait_for(lambda: "ZeroDivisionError: the hook divides by zero" in log.read_text(), "cause in job.log")


def module_of(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("background", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_submitted_run_can_be_stopped_cancelled_and_waited_for(
    submit: Callable[..., tuple[int, RunDir]], project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project)
    monkeypatch.setenv("PYTHONPATH", str(CHECKOUT))
    pid, run_dir = submit("run.steps=1000000", "eval.every_steps=null", "checkpoint.every_steps=null")
    wait_for(lambda: run_dir.read_status()["step"] > 0, "first step", timeout_s=90)
    os.kill(pid, signal.SIGTERM)
    wait_for_state(run_dir, "preempted")
    stopped = run_dir.read_status()["step"]

    background = module_of(project / "user_hooks" / "background.py").Background()
    with background.open(None) as launch:
        job = launch.start(launch.begin(lambda: run_dir.spec))
    assert not job.attached
    wait_for(lambda: run_dir.read_status()["step"] > stopped, "step of the second job", timeout_s=90)
    job.cancel()
    with pytest.raises(Interrupted, match=r"interrupted after step \d+\. To continue from the last checkpoint: runner"):
        job.wait()
    assert run_dir.read_status()["step"] > stopped


def test_its_keys_are_checked_like_those_of_any_option(runner: Callable[..., Any]) -> None:
    ended = runner("check", "points", "launch=background", "launch.delay_s=-1", code=2)
    assert "delay_s=-1.0 must be at least 0; 0 = start at once." in ended.stderr + ended.stdout
