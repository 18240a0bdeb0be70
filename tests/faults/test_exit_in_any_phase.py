"""A process that leaves by os._exit, whatever it is doing: who left is named, and nothing is lost.

tests/project/user_hooks/exiting.py has every hook and part of these runs.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.conftest import Ended, Zygote
from tests.faults.conftest import Process
from tests.faults.directory import Directory
from tests.parity.test_resume import assert_same_run

STEPS = 10
WORDS = (
    "points",
    "run.dir=run",
    "checkpoint.every_steps=2",
    "checkpoint.keep_last=1",
    "model._target_=user_hooks.exiting.build_model",
    "model.dropout=0.2",
    "data._target_=user_hooks.exiting.build_data",
    "loss._target_=user_hooks.exiting.loss",
    "optimizer._target_=user_hooks.exiting.Optimizer",
    "schedule._target_=user_hooks.exiting.Schedule",
    "+metric.exiting._target_=user_hooks.exiting.Metric",
    "+callback.exiting._target_=user_hooks.exiting.Callback",
)
PLACES = {
    "single": (),
    "ddp": ("strategy=ddp", "hardware.processes=2"),
    "asynchronous": ("checkpoint.asynchronous=true",),
}
PLACES["asynchronous ddp"] = PLACES["ddp"] + PLACES["asynchronous"]


class Moment(NamedTuple):
    """When a process leaves."""

    phase: str
    call: int = 1
    """How often it has entered the phase by then."""
    rank: str = "1"
    """Of two ranks, the one that leaves; what only rank 0 does ends rank 0. "" = their launcher."""
    words: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.phase} {self.call}" if self.call > 1 else self.phase


BEGINNING = tuple(Moment("replacement", call, rank="") for call in (3, 4, 5))  # the first one makes spec.yaml
BEFORE = tuple(map(Moment, ("model", "data", "optimizer", "schedule", "tensors", "before_run")))
DURING = (
    Moment("item", 20),
    Moment("loss"),
    Moment("loss", 8),
    Moment("forward", 7),
    Moment("backward"),
    Moment("backward", 7),
    Moment("update", 6),
    Moment("around_step", 6),
    Moment("after_step", 5),
    Moment("evaluation"),
    Moment("metric", 2),
    Moment("merging metrics"),
    Moment("around_eval"),
    Moment("after_eval", 2),
    Moment("state_dict"),
    Moment("state_dict", 3),
    Moment("payload"),
    Moment("payload", 3),
    Moment("commit", 3, rank="0"),
    Moment("deletion", rank="0"),
    Moment("after_save"),
    Moment("after_save", 3),
    Moment("after_run"),
)
OF_TWO = (Moment("import", words=("launch.fork=false",)), Moment("waiting"))
ALWAYS = [("ddp", Moment("backward", 7), 0), ("ddp", Moment("payload", 3), 7), ("single", Moment("state_dict", 3), 7)]
EVERY = [
    (place, moment, code)
    for code in (0, 7)
    for place, moments in {
        "single": (*BEGINNING, *BEFORE, *DURING),
        "ddp": (*BEGINNING, *BEFORE, *DURING, *OF_TWO),
        "asynchronous": (Moment("payload", 3), Moment("commit", 3), Moment("deletion")),
        "asynchronous ddp": (Moment("payload", 3), Moment("commit", 3, rank="0"), Moment("deletion", rank="0")),
    }.items()
    for moment in moments
    if (place, moment, code) not in ALWAYS
]


@pytest.fixture
def directory(project: Path, tmp_path: Path, zygote: Zygote) -> Directory:
    assert project == tmp_path / "project"
    return Directory(tmp_path, zygote)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, zygote: Zygote) -> Callable[[str], Ended]:
    """The run in one of the places from which nobody has left."""
    made: dict[str, Ended] = {}

    def make(place: str) -> Ended:
        if place not in made:
            made[place] = Directory(tmp_path_factory.mktemp("undisturbed"), zygote).run("train", *WORDS, *PLACES[place])
        return made[place]

    return make


def name_of(value: Any) -> str:
    return str(value)


@pytest.mark.fault("a process leaves by os._exit, in any phase", "the rank is named, and nothing committed is lost")
@pytest.mark.parametrize(
    ("place", "moment", "code"),
    [*ALWAYS, *(pytest.param(*case, marks=pytest.mark.exhaustive) for case in EVERY)],
    ids=name_of,
)
def test_whoever_leaves_is_named_and_a_resume_changes_no_bit(
    directory: Directory, undisturbed: Callable[[str], Ended], place: str, moment: Moment, code: int
) -> None:
    expected, run_dir = undisturbed(place), directory.run_dir
    of_two = "ddp" in place and moment.rank != ""
    directory.leave(moment.phase, moment.call, code=code, rank=moment.rank if of_two else "")
    ended = directory.run("train", *WORDS, *PLACES[place], *moment.words, code=1 if of_two else code)
    status = run_dir.read_status()
    if of_two:
        how = f"exited with code {code} without a" if code else "ended with exit code 0 before the run was done"
        first = next(line for line in ended.stderr.splitlines() if line.startswith("rank "))
        assert first.startswith(f"rank {moment.rank} {how}"), ended.stderr
        assert f"the last recorded step is {status['step']}." in first
        assert "Traceback" not in ended.stderr
    # One process is its own launcher: nobody is left who could say so.
    unsaid = "queued" if moment.phase == "replacement" else "running"
    assert status["state"] == ("failed" if of_two else unsaid)
    committed = run_dir.committed_steps()
    assert status["step"] >= max(committed, default=0)
    directory.check_newest_commit()
    directory.stay()
    resumed = directory.run("resume", "run", *(["launch.fork=true"] if moment.words else []))
    assert ("has gone without reporting an end; its last recorded step is" in resumed.stderr) == (not of_two)
    assert ("it has not committed a checkpoint yet" in resumed.stderr) == (not committed)
    assert run_dir.read_status()["state"] == "done"
    assert_same_run(resumed, expected, STEPS)
    directory.check_no_partial()


@pytest.mark.exhaustive
@pytest.mark.parametrize("code", [0, 7])
@pytest.mark.parametrize("place", ["single", "ddp"])
@pytest.mark.fault("a data worker leaves by os._exit", "its rank fails and says so; nothing committed is lost")
def test_a_data_worker_that_leaves_fails_its_rank(
    directory: Directory, undisturbed: Callable[[str], Ended], place: str, code: int
) -> None:
    rank = "1" if place == "ddp" else "0"
    directory.leave("worker", 20, code=code, rank="1" if place == "ddp" else "")
    ended = directory.run("train", *WORDS, *PLACES[place], "loader.workers=1", code=1)
    said = f"rank {rank} failed at step {directory.run_dir.read_status()['step']}: RuntimeError: DataLoader worker (pid"
    assert said in ended.stderr
    assert directory.run_dir.read_status()["state"] == "failed"
    directory.check_newest_commit()
    directory.stay()
    assert_same_run(directory.run("resume", "run"), undisturbed(place), STEPS)
    directory.check_no_partial()


@pytest.mark.exhaustive
@pytest.mark.parametrize("code", [0, 7])
@pytest.mark.parametrize("place", ["single", "ddp"])
@pytest.mark.fault("a resumed run leaves while it is restored", "the next one finds the same checkpoint")
def test_a_process_that_leaves_while_it_is_restored_changes_nothing(
    directory: Directory, undisturbed: Callable[[str], Ended], place: str, code: int
) -> None:
    directory.run("train", *WORDS, *PLACES[place], "run.stop_at_step=4")
    directory.leave("load_state_dict", 1, code=code, rank="1" if place == "ddp" else "")
    for _ in range(2):
        directory.run("resume", "run", code=1 if place == "ddp" else code)
        assert directory.run_dir.committed_steps() == [4]
        directory.check_newest_commit()
    directory.stay()
    assert_same_run(directory.run("resume", "run"), undisturbed(place), STEPS)
    directory.check_no_partial()


@pytest.mark.fault("a rank leaves by os._exit once the run is done", "the run is done")
def test_a_rank_that_leaves_when_it_is_done_takes_nothing_back(directory: Directory) -> None:
    directory.leave("finished", 1, code=7, rank="1")
    directory.run("train", *WORDS, *PLACES["ddp"])
    assert directory.run_dir.read_status()["state"] == "done"
    assert directory.run_dir.committed_steps() == [STEPS]


@pytest.mark.exhaustive
@pytest.mark.parametrize("code", [0, 7])
def test_a_process_that_leaves_when_it_is_done_takes_nothing_back(
    directory: Directory, process: Callable[..., Process], code: int
) -> None:
    """It has no launcher that would end with another code."""
    directory.leave("finished", 1, code=code, rank="")
    ended = process("train", *WORDS).end(timeout_s=150)
    assert ended.code == code, ended.stderr
    assert directory.run_dir.read_status()["state"] == "done"
    assert directory.run_dir.committed_steps() == [STEPS]
    directory.check_left()


@pytest.mark.fault("a module leaves by os._exit when it is imported", "the command says what ended, and starts nothing")
def test_a_module_that_leaves_when_it_is_imported_is_told_without_a_traceback(directory: Directory) -> None:
    """The parts that a declaration names are imported where it is composed, in a process forked for that."""
    directory.leave("import", 1, code=0, rank="")
    ended = directory.run("train", *WORDS, code=1)
    assert ended.stderr.startswith("the process that composes the declaration ended without a word, and nothing was")
    assert "Traceback" not in ended.stderr
    assert not directory.run_dir.path.exists()
