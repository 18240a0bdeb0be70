"""A run's directory under everything that may happen to it between two attempts, or during one."""

import json
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from runner.config import provenance
from runner.config.run_dir import RunDir
from tests.conftest import Ended, Started
from tests.faults.conftest import Process
from tests.parity.test_resume import assert_same_run

LEAVING = '''
"""Losses that end the process itself at their n-th call, without a word."""

import ctypes
import itertools
import os

from user_hooks.points import mean_loss

CALLS = itertools.count(1)


def exits(model, batch, call=6):
    if next(CALLS) == call:
        os._exit(7)
    return mean_loss(model, batch)


def crashes(model, batch, call=6):
    if next(CALLS) == call:
        ctypes.string_at(0)
    return mean_loss(model, batch)
'''
UNSAVED = ["checkpoint=none"]
PAIR = ["strategy=ddp", "hardware.processes=2"]


def steps(path: Path) -> list[int]:
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


@pytest.mark.fault(
    "every file of a run's directory but its checkpoints and first spec is damaged",
    "each is named, set aside and rebuilt; the run continues",
)
def test_a_run_goes_on_though_every_file_beside_its_checkpoints_is_damaged(runner: Callable[..., Ended]) -> None:
    expected = runner("train", "points")
    stopped = runner("train", "points", "run.stop_at_step=4")
    runner("resume", str(stopped.run_dir.path), "run.stop_at_step=6")
    run_dir = stopped.run_dir
    names = ["status.json", "provenance.json", "run_id", "spec.attempt_2.yaml"]
    for name in names:
        (run_dir.path / name).write_bytes(b"\0\xff{")
    first, second, *rest = run_dir.metrics.read_bytes().splitlines(keepends=True)
    run_dir.metrics.write_bytes(b"".join([first, b"\0" * 30 + b"\n", second, *rest]))
    resumed = runner("resume", str(run_dir.path))
    said = resumed.stderr.splitlines()
    for name in [*names, "metrics.jsonl"]:
        assert len([line for line in said if line.startswith(f"warning: {run_dir.path / name}")]) == 1, resumed.stderr
        assert (run_dir.path / f"{name}.damaged-1").exists()
    assert "the run continues with spec.yaml" in resumed.stderr
    assert_same_run(resumed, expected, 10)
    assert run_dir.read_status()["state"] == "done"


@pytest.mark.fault("the newest spec is damaged", "the weights are exported all the same")
def test_weights_are_exported_though_the_newest_spec_is_damaged(runner: Callable[..., Ended]) -> None:
    run = runner("train", "points", "run.steps=4")
    (run.run_dir.path / "spec.attempt_2.yaml").touch()
    exported = runner("export", str(run.run_dir.path))
    with safe_open(Path(exported.stdout.splitlines()[-1]) / "model.safetensors", "pt") as file:
        assert len(file.keys()) == 4
    assert (run.run_dir.path / "spec.attempt_2.yaml").exists()  # an export changes nothing


@pytest.mark.fault("a second attempt at a run that is under way", "it is refused, with host, process and time")
def test_a_second_attempt_is_refused_while_the_first_goes_on(start: Callable[..., Started], project: Path) -> None:
    run_dir = RunDir(project / "run")
    first = start("train", "points", "run.dir=run", "run.steps=1000000", *PAIR)
    deadline = time.monotonic() + 60
    while not (run_dir.metrics.exists() and run_dir.read_status()["step"] > 20):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    partial = run_dir.checkpoints / "step_1.partial-0"
    partial.mkdir()
    second = start("resume", "run").wait(60)
    assert second.code == 9
    assert f"{run_dir.path} is in use by process {first.pid} on " in second.stderr
    assert second.stderr.strip().endswith(f"kill {first.pid}")
    assert partial.exists()  # an attempt removes what an earlier one left unfinished
    assert run_dir.read_status()["state"] == "running"
    assert [path.name for path in run_dir.specs()] == ["spec.yaml"]
    first.kill()
    assert first.wait(20).code == -signal.SIGKILL
    third = start("resume", "run", f"run.steps={run_dir.read_status()['step'] + 3}").wait(60)
    assert third.code == 0, third.stderr
    assert f"process {first.pid} on " in third.stderr
    assert "has gone without reporting an end" in third.stderr


@pytest.mark.fault(
    "SIGKILL at any moment, the status read afterwards", "it is never older than the last record or commit"
)
@pytest.mark.parametrize(
    "placed",
    [
        pytest.param([], id="single"),
        pytest.param(PAIR, id="ddp", marks=pytest.mark.exhaustive),  # rank 0 writes it alone
        pytest.param(["checkpoint.asynchronous=true"], id="asynchronous"),
    ],
)
def test_the_status_is_never_older_than_a_record_or_a_commit(
    start: Callable[..., Started], project: Path, placed: list[str]
) -> None:
    """Killed at random moments, six times; the run continues from whatever it has by then."""
    chance = random.Random(len(placed))
    run_dir, argv = RunDir(project / "run"), ["train", "points", "run.dir=run", "run.steps=1000000", *placed]
    for _ in range(6):
        before = run_dir.metrics.stat().st_size if run_dir.metrics.exists() else 0
        command = start(*argv)
        deadline = time.monotonic() + 60
        while not run_dir.metrics.exists() or run_dir.metrics.stat().st_size == before:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(chance.uniform(0, 0.4))
        command.kill()
        command.wait(30)
        time.sleep(0.2)  # ranks end with the launcher
        status = run_dir.read_status()
        assert "step" not in json.loads(run_dir.status.read_text())  # which would be that of some record before
        records = [json.loads(line)["step"] for line in run_dir.metrics.read_text().split("\n")[:-1]]
        assert status["step"] >= max(records, default=0)
        assert status["step"] >= max(run_dir.committed_steps(), default=0)
        assert records == sorted(records)
        argv = ["resume", "run"]


@pytest.mark.fault("the checkpoints of a run are gone", "a resume is refused, unless step 0 is asked for")
@pytest.mark.parametrize("gone", ["directory", "content"])
def test_a_run_whose_checkpoints_are_gone_is_not_started_from_0(runner: Callable[..., Ended], gone: str) -> None:
    run = runner("train", "points", "run.steps=6")
    shutil.rmtree(run.run_dir.checkpoints)
    if gone == "content":
        run.run_dir.checkpoints.mkdir()
    before = run.run_dir.metrics.read_bytes()
    refused = runner("resume", str(run.run_dir.path), "run.steps=8", code=8)
    assert "the checkpoints of this run are gone: provenance.json says that step_4 was committed" in refused.stderr
    assert refused.stderr.strip().endswith("--from 0")
    assert run.run_dir.metrics.read_bytes() == before
    again = runner("resume", str(run.run_dir.path), "run.steps=8", "--from", "0")
    assert f"warning: {run.run_dir.path} starts from step 0: as --from 0 asks for." in again.stderr
    assert steps(run.run_dir.metrics)[0] == 1
    assert run.run_dir.committed_steps() == [4, 8]
    refused = runner("resume", str(run.run_dir.path), "--from", "0", code=2)
    assert "--from: 0 is for a run without checkpoints, but this one has step_4, step_8." in refused.stderr


@pytest.mark.fault("a run that never committed is resumed", "it starts at step 0 and says so")
def test_a_run_that_never_committed_starts_from_0_and_says_so(runner: Callable[..., Ended]) -> None:
    run = runner("train", "points", "run.steps=4", *UNSAVED)
    assert provenance.committed(run.run_dir.provenance) == []
    again = runner("resume", str(run.run_dir.path), "run.steps=5")
    assert f"warning: {run.run_dir.path} starts from step 0: it has not committed a checkpoint yet." in again.stderr


@pytest.mark.fault("a single process leaves by os._exit or SIGKILL", "the next command says which process has gone")
def test_a_process_that_leaves_without_a_word_is_reported_by_the_next_command(
    project: Path, runner: Callable[..., Ended]
) -> None:
    (project / "user_hooks" / "leaving.py").write_text(LEAVING)
    runner("train", "points", "run.dir=run", "loss._target_=user_hooks.leaving.exits", code=7)
    run_dir = RunDir(project / "run")
    assert run_dir.read_status()["state"] == "running"
    again = runner("resume", "run", "+loss.call=0", "--allow", "loss")
    assert "has gone without reporting an end; its last recorded step is 5" in again.stderr
    assert run_dir.read_status()["state"] == "done"


@pytest.mark.fault("a single process crashes in native code (SIGSEGV)", "it shows its stack")
def test_a_crash_of_native_code_is_told_at_once(project: Path, process: Callable[..., Process]) -> None:
    (project / "user_hooks" / "leaving.py").write_text(LEAVING)
    crashed = process("train", "points", "run.dir=run", "loss._target_=user_hooks.leaving.crashes").end()
    assert crashed.code == -signal.SIGSEGV
    assert "Fatal Python error: Segmentation fault" in crashed.stderr
    assert "user_hooks/leaving.py" in crashed.stderr


@pytest.mark.fault("the status is read while it is replaced", "it is always whole")
def test_no_reader_sees_a_status_that_is_not_whole(start: Callable[..., Started], project: Path) -> None:
    """Read as fast as possible while a run writes records a few hundred times a second."""
    run_dir = RunDir(project / "run")
    command = start("train", "points", "run.dir=run", "run.steps=400", *UNSAVED)
    seen: list[dict[str, Any]] = []
    deadline = time.monotonic() + 60
    while not seen or seen[-1]["state"] in ("queued", "running"):
        assert time.monotonic() < deadline
        time.sleep(0.001)
        if run_dir.status.exists():
            seen.append(run_dir.read_status())
    assert command.wait(60).code == 0
    assert len({one["step"] for one in seen}) > 20
    assert [one["step"] for one in seen] == sorted(one["step"] for one in seen)
