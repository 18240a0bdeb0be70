"""`runner selftest`: real runs of two strategies in every group; and what it leaves behind, which is nothing."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from runner.cli.main import main
from runner.machine.options import shipped_options
from runner.selftest import checks
from runner.selftest.bench import Bench
from runner.selftest.checks import Check, Missing, checks_of
from runner.selftest.places import HOST, Place, Way, find_places
from runner.selftest.verdict import DiffersError
from tests.conftest import CHECKOUT, Zygote

SOME: dict[str, list[str]] = {"ddp": [], "fsdp": [], "sad": ["it needs a device that is not here."]}


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("bench"), timeout_s=150)


@pytest.fixture(scope="module")
def place() -> Place:
    """Two strategies that can run on two processes, and one that cannot run at all."""
    faults: dict[str, dict[str, list[str]]] = {
        "strategy": SOME,
        "precision": {"bf16": []},
        "checkpoint": {"full": [], "none": []},
    }
    return Place(HOST, 2, forks=True, faults={1: faults, 2: faults})


@pytest.mark.timeout(400)
@pytest.mark.parametrize(
    ("group", "names"),
    [
        pytest.param("strategy", ["ddp, 2 processes", "fsdp, 2 processes"], marks=pytest.mark.exhaustive),
        ("precision", ["bf16, 1 process"]),
        pytest.param(
            "resume", ["ddp, 2 processes", "fsdp, 2 processes", "checkpoint=full"], marks=pytest.mark.exhaustive
        ),
        pytest.param(
            "interchange", ["ddp → fsdp, 2 processes", "fsdp → ddp, 2 processes"], marks=pytest.mark.exhaustive
        ),
    ],
)
def test_losses_of_real_runs_agree(bench: Bench, place: Place, group: str, names: list[str]) -> None:
    found = list(checks_of(group, place))
    assert [one.name for one in found if isinstance(one, Check)] == names
    for one in found:
        if isinstance(one, Check):
            assert "losses" in one.run(bench)


@pytest.mark.parametrize("group", [pytest.param("strategy", marks=pytest.mark.exhaustive), "precision"])
def test_a_difference_is_a_failure(bench: Bench, place: Place, monkeypatch: pytest.MonkeyPatch, group: str) -> None:
    """Where the test above has run, nothing is trained again."""
    monkeypatch.setattr(checks, "FLOAT32", 1e-12)
    monkeypatch.setattr(checks, "NARROW", 1e-12)
    failing = next(one for one in checks_of(group, place) if isinstance(one, Check))
    with pytest.raises(DiffersError, match="1e-12 allowed"):
        failing.run(bench)


def test_what_cannot_run_here_is_told_with_its_reason(place: Place) -> None:
    missing = [one for one in checks_of("strategy", place) if isinstance(one, Missing)]
    assert missing == [Missing("strategy", "sad", "it needs a device that is not here.")]


def test_every_strategy_has_its_place_on_this_machine() -> None:
    """Those of several processes run on two, whatever the machine has; large buffers are kept small."""
    found = find_places()[-1]
    usable, missing = found.ways("strategy")
    assert {way.option for way in usable} | missing.keys() == set(shipped_options()["strategy"])
    assert {way.option for way in usable if way.processes == 1} == {"single"}
    divided = found.divided(Way("deepspeed_zero2", 2))
    assert {"hardware.processes=2", "strategy=deepspeed_zero2", "strategy.reduce_bucket_size=65536"} <= set(divided)


def test_a_group_that_there_is_not_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["selftest", "stratgy"]) == 2
    assert "GROUP: there is no group 'stratgy'. There are: strategy, precision" in capsys.readouterr().err


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Any]:
    """The command, in a directory, a home and a place for temporary files that are empty; killed at the end."""
    processes: list[subprocess.Popen[str]] = []
    places = {name: tmp_path / name for name in ("cwd", "home", "tmp", "state")}
    for path in places.values():
        path.mkdir()
    environment = os.environ | {"PYTHONPATH": str(CHECKOUT), "OMP_NUM_THREADS": "1", "HOME": str(places["home"])}
    environment |= {"TMPDIR": str(places["tmp"]), "XDG_STATE_HOME": str(places["state"])}

    def start(*argv: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "runner", "selftest", *argv]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        process = subprocess.Popen(command, cwd=places["cwd"], env=environment, process_group=0, **pipes)  # type: ignore[call-overload]
        processes.append(process)
        return process

    yield start, tmp_path
    for process in processes:
        process.kill()
        process.communicate()


@pytest.mark.timeout(400)
def test_the_command_leaves_nothing_behind(started: Any) -> None:
    start, around = started
    process = start("precision")
    output, _ = process.communicate(timeout=350)
    assert process.returncode == 0, output
    assert " work, 0 fail, " in output.splitlines()[-1]
    assert [path for path in around.rglob("*") if not path.is_dir()] == []
    assert list((around / "tmp").iterdir()) == []


@pytest.mark.timeout(300)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_ends_it_and_its_run(tmp_path: Path, zygote: Zygote, number: signal.Signals) -> None:
    temporary, words = tmp_path / "tmp", ["selftest", "strategy", "--timeout", "200"]
    temporary.mkdir()
    process = zygote.start(words, cwd=tmp_path, scratch=tmp_path, env={"TMPDIR": str(temporary)})
    try:
        deadline = time.monotonic() + 200
        while not list(temporary.glob("*/run_*/status.json")):  # a run is under way
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(number)
        ended = process.wait(60)
    finally:
        process.kill()
    assert ended.code == 130, ended.stderr
    assert ended.stderr.endswith("interrupted\n")
    assert list(temporary.iterdir()) == []
