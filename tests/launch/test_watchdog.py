"""A rank that makes no progress is named, with where it stands and its stack; not the one that waits for it."""

import json
import re
import signal
import time

import pytest
from launching import Launch, Launcher

from runner.launch.watchdog import Watchdog
from runner.world.activity import Activity, ActivityTable, Phase, Standing

FORK = pytest.mark.parametrize("fork", [True, False], ids=["forked", "separate"])
TIMEOUT_S = 1.0


def end_by_hang(run: Launch) -> str:
    """What the command says; fails if the run ends otherwise."""
    code, _, stderr = run.end(40)
    assert code == 11, stderr
    assert run.run_dir.read_status()["state"] == "failed"
    run.wait_until_gone()
    return stderr


@pytest.mark.fault("a rank asleep in a data hook", "it is named with its stack, and not the rank that waits for it")
@FORK
def test_a_rank_asleep_in_a_hook_is_named_and_not_the_one_that_waits(launch: Launcher, fork: bool) -> None:
    run = launch(processes=2, mode="hang_collective", timeout_s=TIMEOUT_S, fork=fork)
    stderr = end_by_hang(run)
    first, stack = stderr.splitlines()[:2]
    assert first.startswith("RunFailed: rank 1 failed at step 5: HangError: no progress for hardware.timeout_s=1 s.")
    assert "It is reading data (step 5); rank 0: forward, backward or update (step 5)." in first
    assert "raise hardware.timeout_s" in first
    assert re.fullmatch(r'  File ".*toy\.py", line \d+ in _trouble', stack)
    assert "local_elastic_agent" not in stderr, "those are calls of the launcher that was forked"
    for rank in (0, 1):
        assert "stacks of all threads, most recent call first:" in run.run_dir.rank_log(rank).read_text()
    (report,) = run.run_dir.failures.glob("*.json")
    told = json.loads(report.read_text())
    assert (told["rank"], told["step"], told["error"]) == (1, 5, "HangError")


@pytest.mark.fault("a rank hangs in native code", "it is named with its stack")
def test_a_rank_in_a_c_call_writes_its_stack_too(launch: Launcher) -> None:
    run = launch(processes=2, mode="hang_c", timeout_s=TIMEOUT_S)
    assert re.search(r'^  File ".*toy\.py", line \d+ in _lock_for_ever', end_by_hang(run), re.MULTILINE)


@pytest.mark.fault("a rank is stopped (SIGSTOP)", "it is named as stopped")
def test_a_stopped_process_is_named(launch: Launcher) -> None:
    run = launch(processes=2, mode="train", steps=10_000, timeout_s=TIMEOUT_S)
    run.wait_for_step(3)
    run.send_to_rank(0, signal.SIGSTOP)
    stderr = end_by_hang(run)
    assert stderr.startswith("RunFailed: rank 0 failed at step ")
    assert "Its process was stopped, by SIGSTOP or a debugger." in stderr


@pytest.mark.fault("a hang in a run that may restart", "the ranks start again")
def test_a_hang_is_a_failure_to_restart_from(launch: Launcher) -> None:
    run = launch(processes=2, mode="hang_once", timeout_s=TIMEOUT_S, max_restarts=1)
    assert run.end(60)[0] == 0
    assert len(run.rank_pids()) == 4


def test_a_run_that_goes_on_slowly_is_left_alone(launch: Launcher) -> None:
    run = launch(processes=2, mode="train", steps=200, timeout_s=1.5)
    assert run.end(60) == (0, "", "")


def stand(phase: Phase, changes: int = 1) -> Standing:
    return Standing(step=1, phase=phase, changes=changes)


def test_hooks_callbacks_and_checkpoints_take_as_long_as_nobody_waits_for_them() -> None:
    watchdog = Watchdog(timeout_s=0.05)
    for _ in range(3):
        busy = {0: stand(Phase.BUILDING), 1: stand(Phase.CALLBACK), 2: stand(Phase.SAVING)}
        assert watchdog.poll(busy) is None
        time.sleep(0.04)
    waiting = busy | {3: stand(Phase.WAITING)}
    assert watchdog.poll(waiting) is None
    time.sleep(0.06)
    hang = watchdog.poll(waiting)
    assert hang is not None
    assert hang.standings == waiting


@pytest.mark.fault("the launcher itself stands still, as on a machine that sleeps", "the time does not count")
def test_time_in_which_the_launcher_itself_stood_still_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    watchdog = Watchdog(timeout_s=30)
    assert watchdog.poll({0: stand(Phase.DATA)}) is None
    now = 3600.0
    assert watchdog.poll({0: stand(Phase.DATA)}) is None
    assert watchdog.poll({0: stand(Phase.DATA, changes=2)}) is None


def test_what_a_rank_notes_is_what_its_launcher_reads() -> None:
    table = ActivityTable(2)
    try:
        start = table.begin()
        ranks = [Activity.open(table.path, local_rank=rank) for rank in range(2)]
        assert [rank.start for rank in ranks] == [start, start]
        ranks[1].enter(Phase.DATA, 7)
        with ranks[1].during(Phase.WAITING):
            assert table.read()[1] == Standing(step=7, phase=Phase.WAITING, changes=2)
        assert table.read() == [
            Standing(step=0, phase=Phase.STARTING, changes=0),
            Standing(step=7, phase=Phase.DATA, changes=3),
        ]
        assert table.begin() != start
        assert table.read()[1] == Standing(step=0, phase=Phase.STARTING, changes=0)
    finally:
        table.close()


def test_the_report_that_a_rank_leaves_is_what_its_launcher_reads_until_the_ranks_start_anew() -> None:
    table = ActivityTable(2)
    try:
        table.begin()
        rank = Activity.open(table.path, local_rank=1)
        assert table.reports() == []
        rank.leave_report(b"x" * rank.max_report_bytes)
        Activity.open(table.path, local_rank=0).leave_report(b"short")
        assert table.reports() == [b"short", b"x" * rank.max_report_bytes]
        assert table.read()[1] == Standing(step=0, phase=Phase.STARTING, changes=0)
        table.begin()
        assert table.reports() == []
    finally:
        table.close()
