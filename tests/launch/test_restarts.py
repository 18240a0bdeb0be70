"""A group that failed starts again where it stood."""

import re

import pytest
from launching import Launcher

FORK = pytest.mark.parametrize("fork", [True, False], ids=["forked", "separate"])


@FORK
def test_a_killed_rank_restarts_the_group(launch: Launcher, fork: bool) -> None:
    run = launch(processes=2, mode="kill_once", max_restarts=1, fork=fork)
    code, stdout, stderr = run.end()
    assert (code, stdout, stderr) == (0, "", "")
    assert run.run_dir.read_status()["state"] == "done"
    assert len(run.rank_pids()) == 4
    assert not run.alive()


def test_one_process_restarts_too(launch: Launcher) -> None:
    run = launch(processes=1, mode="kill_once", max_restarts=1)
    assert run.end()[0] == 0
    assert len(run.rank_pids()) == 2


def test_when_no_restart_is_left_the_last_failure_is_told(launch: Launcher) -> None:
    run = launch(processes=2, mode="fail_again", max_restarts=2)
    code, _, stderr = run.end()
    assert code == 1
    assert re.match("RunFailed: rank 1 failed at step [56]: ValueError: the loss is a teapot", stderr)
    assert "(after 2 restarts)" in stderr
    assert len(run.rank_pids()) == 6
