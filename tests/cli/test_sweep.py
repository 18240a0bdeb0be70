"""`runner train -m`: one directory, a process tree for each job, and a table in which failures stand beside results."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any


def results(out: Any) -> Any:
    directory = Path(out.splitlines()[-1])
    return directory, json.loads((directory / "results.json").read_text())


def test_jobs_run_apart_and_their_results_are_kept(runner: Callable[..., tuple[int, str, str]], project: Path) -> None:
    code, out, _ = runner("train", "tiny", "-m", "optimizer=sgd,adamw", "model.width=1,2")
    directory, jobs = results(out)
    assert code == 0
    assert directory.parent.parent == project / "multirun" / "tiny"
    assert [job["overrides"] for job in jobs] == [
        [f"optimizer={optimizer}", f"model.width={width}"] for optimizer in ("sgd", "adamw") for width in (1, 2)
    ]
    assert [(job["state"], job["step"], job["metrics"]["eval/loss"]) for job in jobs] == [
        ("done", 5, 1.0),
        ("done", 5, 2.0),
    ] * 2
    pids = {json.loads((Path(job["dir"]) / "noted.json").read_text())["pid"] for job in jobs}
    assert len(pids) == 4


def test_a_job_that_fails_is_told_at_once_and_the_others_go_on(runner: Callable[..., tuple[int, str, str]]) -> None:
    code, out, err = runner("train", "tiny", "--multirun", "launch.fail='',failed,killed", "run.steps=3")
    _, jobs = results(out)
    assert code == 1
    assert [job["state"] for job in jobs] == ["done", "failed", "failed"]
    assert "rank 0: it broke" in err
    assert "job 1 failed (exit code 1)" in err
    assert "job 2 failed (exit code 9)" in err


def test_a_job_that_is_declared_wrongly_fails_alone(runner: Callable[..., tuple[int, str, str]]) -> None:
    code, out, err = runner("train", "tiny", "run.steps=4,abc", "-m")
    _, jobs = results(out)
    assert code == 1
    assert [job["state"] for job in jobs] == ["done", "failed"]
    assert "job 1 has an invalid declaration:\nrun.steps: 'abc' must be a whole number." in err


def test_overrides_that_no_job_can_have_end_the_sweep_before_it_begins(
    runner: Callable[..., tuple[int, str, str]], project: Path
) -> None:
    code, _, err = runner("train", "tiny", "-m", "optimizer=sgd,adamww", "modle.width=1,2", "run.dir=x")
    assert code == 2
    assert "there is no option 'adamww'. Did you mean adamw?" in err
    assert "modle.width: there is no such key" in err
    assert "run.dir: 'x' names the directory of one run, but a sweep has many. Use sweep.dir" in err
    assert not (project / "multirun").exists()


def test_a_sweep_goes_where_it_is_told(runner: Callable[..., tuple[int, str, str]], project: Path) -> None:
    assert runner("train", "tiny", "-m", "model.width=1,2", "sweep.dir=a b/c")[1].splitlines()[-1] == str(
        project / "a b" / "c"
    )
    assert (project / "a b" / "c" / "1" / "spec.yaml").exists()
    code, _, err = runner("train", "tiny", "-m", "model.width=1,2", "sweep.dir=a b/c")
    assert code == 2
    assert "exists already" in err


def test_one_job_after_another_in_a_program_of_its_own(
    command: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    said = command("train", "tiny", "-m", "model.width=range(1,4)")
    assert said.returncode == 0, said.stderr
    assert len(results(said.stdout)[1]) == 3


def test_jobs_of_hardware_that_cannot_be_forked_are_spawned(
    command: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    said = command("train", "tiny", "-m", "model.width=1,2", "hardware._target_=cli_hooks.Unforkable")
    assert said.returncode == 0, said.stderr
    assert [job["metrics"]["eval/loss"] for job in results(said.stdout)[1]] == [1.0, 2.0]
