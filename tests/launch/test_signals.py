"""Ctrl-C stops everything within 5 s and leaves no process behind."""

import json
import re
import signal
import time

import pytest
from launching import Launcher

FORK = pytest.mark.parametrize("fork", [True, False], ids=["forked", "separate"])


@pytest.mark.parametrize("processes", [1, 2])
def test_ctrl_c_ends_at_a_step_boundary_and_says_how_to_go_on(launch: Launcher, processes: int) -> None:
    run = launch(processes=processes, mode="train", steps=10_000)
    (run.run_dir.checkpoints / "step_2").mkdir(parents=True)
    run.wait_for_step(3)
    run.interrupt_group()
    code, stdout, stderr = run.end(5)
    assert code == 130
    assert run.run_dir.read_status()["state"] == "preempted"
    assert stdout == ""
    step = run.run_dir.read_status()["step"]
    stopping, told = stderr.splitlines()
    assert stopping == "stopping after this step; press Ctrl-C again to stop at once"
    assert told.startswith(f"Interrupted: interrupted after step {step}. To continue from the last checkpoint: ")
    assert told.endswith(f"runner resume {run.run_dir.path}")
    run.wait_until_gone()


def test_ctrl_c_reaches_separate_interpreters(launch: Launcher) -> None:
    run = launch(processes=2, mode="train", steps=10_000, fork=False)
    run.wait_for_step(3)
    run.interrupt_group()
    assert run.end(5)[0] == 130
    run.wait_until_gone()


@pytest.mark.fault("Ctrl-C while ranks hang", "they are ended after launch.interrupt_s")
@pytest.mark.parametrize("mode", ["hang_c", "hang_collective"])
def test_ctrl_c_ends_hanging_ranks_within_five_seconds(launch: Launcher, mode: str) -> None:
    """In one of the two after the time that is the default."""
    times = {} if mode == "hang_c" else {"interrupt_s": 1.0}
    run = launch(processes=2, mode=mode, **times)
    run.wait_for_trouble()
    run.interrupt_group()
    code, _, stderr = run.end(5)
    assert code == 130
    assert "runner resume" in stderr
    run.wait_until_gone()
    status = run.run_dir.read_status()
    assert status["state"] == "preempted"
    assert status["step"] >= 5
    assert status["metrics"] == {"train/loss": 1 / status["step"]}


def test_ctrl_c_ends_a_long_c_call_of_one_process_within_five_seconds(launch: Launcher) -> None:
    run = launch(processes=1, mode="hang_c")
    run.wait_for_trouble()
    run.interrupt_group()
    code, _, stderr = run.end(5)
    assert code == 130
    assert "interrupted after step 5." in stderr
    assert json.loads(run.run_dir.status.read_text()) == {
        "state": "preempted",
        "step": 5,
        "metrics": {"train/loss": 0.2},
    }


@pytest.mark.fault("Ctrl-C twice", "the run ends at once")
@pytest.mark.parametrize("processes", [1, 2])
def test_a_second_ctrl_c_ends_at_once(launch: Launcher, processes: int) -> None:
    run = launch(processes=processes, mode="hang_c", interrupt_s=60)
    run.wait_for_trouble()
    run.interrupt_group()
    time.sleep(0.5)
    run.interrupt_group()
    assert run.end(2)[0] == 130
    run.wait_until_gone()


@pytest.mark.parametrize("processes", [1, 2])
def test_an_echo_of_the_signal_is_not_a_second_one(launch: Launcher, processes: int) -> None:
    run = launch(processes=processes, mode="slow")
    run.wait_for_trouble()
    for _ in range(3):
        run.interrupt_group()
        time.sleep(0.01)
    assert run.end(5)[0] == 130
    assert run.run_dir.read_status()["step"] == 6
    assert not list(run.run_dir.failures.glob("*"))


@pytest.mark.parametrize("processes", [1, 2])
def test_sigterm_gives_time_to_commit_and_then_kills(launch: Launcher, processes: int) -> None:
    run = launch(processes=processes, mode="hang_c", grace_s=1.0)
    run.wait_for_trouble()
    begin = time.monotonic()
    run.send(signal.SIGTERM)
    assert run.end(5)[0] == 130
    assert time.monotonic() - begin >= 1.0
    assert run.run_dir.read_status()["state"] == "preempted"
    run.wait_until_gone()


STOPS = [signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2]


@pytest.mark.fault(
    "INT, TERM, HUP, USR1 or USR2 to the launcher", "the step is finished and committed; the state is preempted"
)
@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("number", STOPS)
def test_every_signal_that_asks_to_stop_is_answered_at_a_step_boundary(
    launch: Launcher, processes: int, number: signal.Signals
) -> None:
    run = launch(processes=processes, mode="train", steps=10_000)
    run.wait_for_step(3)
    run.send(number)
    code, _, stderr = run.end(5)
    status = run.run_dir.read_status()
    assert (code, status["state"]) == (130, "preempted")
    assert f"interrupted after step {status['step']}." in stderr
    assert not run.run_dir.failures.exists()
    run.wait_until_gone()


@pytest.mark.fault(
    "INT, TERM, HUP, USR1 or USR2 to one rank", "the step is finished and committed; the state is preempted"
)
@pytest.mark.parametrize("number", STOPS)
def test_a_signal_to_one_rank_alone_stops_all(launch: Launcher, number: signal.Signals) -> None:
    run = launch(processes=2, mode="train", steps=10_000)
    run.wait_for_step(3)
    run.send_to_rank(1, number)
    code, _, stderr = run.end(5)
    status = run.run_dir.read_status()
    assert (code, status["state"]) == (130, "preempted")
    assert stderr.startswith(f"Interrupted: interrupted after step {status['step']}."), "nobody asked the launcher"
    run.wait_until_gone()


@FORK
@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGUSR1, marks=pytest.mark.exhaustive)])
def test_a_signal_to_the_whole_tree_stops_at_a_step_boundary(
    launch: Launcher, number: signal.Signals, fork: bool
) -> None:
    run = launch(processes=2, mode="slow", fork=fork)
    run.wait_for_trouble()
    run.send_to_all(number)
    code, _, _ = run.end(5)
    status = run.run_dir.read_status()
    assert (code, status["state"], status["step"]) == (130, "preempted", 6), "rank 1 was asleep in step 5"
    assert not run.run_dir.failures.exists()
    run.wait_until_gone()


@pytest.mark.fault("a signal to the whole tree while ranks start", "it is not lost")
@FORK
def test_a_signal_to_the_whole_tree_while_ranks_start_is_not_lost(launch: Launcher, fork: bool) -> None:
    run = launch(processes=2, mode="train", steps=10_000, fork=fork, forks=False)
    run.wait_until(run.rank_pids, "first rank")
    run.send_to_all(signal.SIGTERM)
    assert run.end(20)[0] == 130
    assert run.run_dir.read_status()["state"] == "preempted"
    run.wait_until_gone()


@pytest.mark.parametrize("processes", [1, 2])
def test_sigterm_again_does_not_shorten_the_time_to_commit_but_ctrl_c_does(launch: Launcher, processes: int) -> None:
    run = launch(processes=processes, mode="hang_c")
    run.wait_for_trouble()
    for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGTERM):  # Slurm sends as many
        run.send(number)
        time.sleep(0.3)
    assert run.is_running()
    run.send(signal.SIGINT)
    assert run.end(2)[0] == 130
    run.wait_until_gone()


@pytest.mark.fault("SIGQUIT", "the run ends at once; the stacks of all threads are in the logs")
@pytest.mark.parametrize("processes", [1, 2])
def test_sigquit_ends_at_once_and_leaves_the_stacks(launch: Launcher, processes: int) -> None:
    run = launch(processes=processes, mode="hang_collective", grace_s=60)
    run.wait_for_trouble()
    run.send(signal.SIGQUIT)
    code, _, stderr = run.end(3)
    assert (code, run.run_dir.read_status()["state"]) == (130, "preempted")
    assert stderr.startswith("ending at once; the logs have the stacks of all threads\n")
    assert re.search(r'toy\.py", line \d+ in _trouble', run.run_dir.rank_log(processes - 1).read_text())
    run.wait_until_gone()


def test_a_failure_is_told_at_once_although_ranks_handle_sigterm(launch: Launcher) -> None:
    """Torch's agent would send SIGTERM to the other rank, which is in a C call, and wait for 30 s."""
    run = launch(processes=2, mode="hang_c")
    run.wait_for_trouble()
    begin = time.monotonic()
    run.send_to_rank(0, signal.SIGKILL)
    code, _, stderr = run.end(5)
    assert code == 1
    assert time.monotonic() - begin < 2
    assert stderr.startswith("RunFailed: rank 0 was killed by SIGKILL; ")
    run.wait_until_gone()


@FORK
def test_ctrl_c_while_ranks_start_leaves_none(launch: Launcher, fork: bool) -> None:
    run = launch(processes=2, mode="train", steps=10_000, fork=fork, forks=False)
    run.wait_until(run.rank_pids, "first rank")
    run.interrupt_group()
    assert run.end(5)[0] == 130
    run.wait_until_gone()


def test_ctrl_c_is_not_taken_for_a_failure_to_restart_from(launch: Launcher) -> None:
    run = launch(processes=2, mode="hang_c", max_restarts=3, interrupt_s=0.2)
    run.wait_for_trouble()
    run.interrupt_group()
    assert run.end(5)[0] == 130
    assert len(run.rank_pids()) == 2


@pytest.mark.fault("the launcher is killed", "no rank outlives it")
def test_no_rank_outlives_a_killed_launcher(launch: Launcher) -> None:
    run = launch(processes=2, mode="hang_collective")
    run.wait_for_trouble()
    run.send(signal.SIGKILL)
    assert run.end(5)[0] == -signal.SIGKILL
    run.wait_until_gone()
