"""What a failing run reports."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from launching import Launcher

from runner.config.failure import Failure, decode_failure, encode_failure
from runner.config.run_dir import RunDir
from runner.launch.failures import find_cause, read_failures

FORK = pytest.mark.parametrize("fork", [True, False], ids=["forked", "separate"])


@FORK
def test_the_failing_ranks_traceback_is_what_the_user_sees(launch: Launcher, fork: bool) -> None:
    run = launch(processes=2, mode="fail", fork=fork)
    code, stdout, stderr = run.end()
    assert code == 1
    assert stdout == ""
    lines = stderr.splitlines()
    assert re.fullmatch("RunFailed: rank 1 failed at step [56]: ValueError: the loss is a teapot", lines[0])
    assert lines[1] == "Traceback (most recent call last):"
    assert "ValueError: the loss is a teapot" in lines
    assert lines[-2:] == [
        f"logs: {run.run_dir.logs}",
        f"To start again (there is no checkpoint yet): runner resume {run.run_dir.path}",
    ]
    assert stderr.count("Traceback") == 1
    status = run.run_dir.read_status()
    assert status == {"state": "failed", "step": status["step"], "metrics": {"train/loss": 1 / status["step"]}}
    assert status["step"] in (5, 6)  # rank 0 may be a step ahead
    assert "ValueError: the loss is a teapot" in run.run_dir.rank_log(1).read_text()


def test_one_process_tells_it_in_the_same_shape(launch: Launcher) -> None:
    run = launch(processes=1, mode="fail")
    code, _, stderr = run.end()
    assert code == 1
    assert stderr.startswith("RunFailed: rank 0 failed at step 5: ValueError: the loss is a teapot\nTraceback (most")
    assert f"logs: {run.run_dir.logs}" in stderr
    assert run.run_dir.read_status()["state"] == "failed"


@pytest.mark.fault("one rank is killed", "it is named with the signal, and what usually sends it")
@FORK
def test_a_killed_rank_is_named_with_its_signal(launch: Launcher, fork: bool) -> None:
    run = launch(processes=2, mode="kill", fork=fork)
    code, _, stderr = run.end()
    assert code == 1
    assert re.match(
        "RunFailed: rank 1 was killed by SIGKILL; the last recorded step is [56]. Usually the kernel ran out", stderr
    )
    assert run.run_dir.read_status()["state"] == "failed"


@FORK
def test_a_rank_left_by_sys_exit_fails_the_run(launch: Launcher, fork: bool) -> None:
    run = launch(processes=2, mode="exit", fork=fork)
    code, _, stderr = run.end()
    assert code == 1
    assert re.match("RunFailed: rank 1 exited with code 1 without a traceback in", stderr)
    assert "HookError: rank 1 called sys.exit(0). Return, or raise an exception, instead." in stderr


@pytest.mark.fault("one rank leaves by os._exit(0)", "it is named, not the ranks that lost it")
@FORK
def test_a_rank_left_by_os_exit_is_the_one_that_is_blamed(launch: Launcher, fork: bool) -> None:
    run = launch(processes=2, mode="leave", fork=fork)
    code, _, stderr = run.end()
    assert code == 1
    assert re.match("RunFailed: rank 1 ended with exit code 0 before the run was done; the last recorded", stderr)
    run.wait_until_gone()


def test_one_process_left_by_sys_exit_fails_the_run(launch: Launcher) -> None:
    run = launch(processes=1, mode="exit")
    code, _, stderr = run.end()
    assert code == 1
    assert "rank 0 failed at step 5: SystemExit: 0" in stderr


def test_ranks_that_return_without_an_end_fail_the_run(launch: Launcher) -> None:
    run = launch(processes=2, mode="forget", at=5)
    code, _, stderr = run.end()
    assert code == 1
    assert f"the ranks ended, but {run.run_dir.status} says running." in stderr


START = 77


def write(run_dir: RunDir, rank: int, monotonic_ns: int, **changes: Any) -> None:
    run_dir.failures.mkdir(exist_ok=True)
    told: dict[str, Any] = {
        "rank": rank,
        "monotonic_ns": monotonic_ns,
        "time_ns": 1000 - monotonic_ns,
        "start": START,
        "step": 7,
    }
    path = run_dir.failures / f"{monotonic_ns}_rank_{rank}.json"
    told |= {"error": "ValueError", "message": f"of {rank}", "traceback": "Traceback …"}
    path.write_text(json.dumps({**told, **changes}))


@pytest.mark.fault("the clock is set back between two failures", "the one that came first is the cause")
def test_the_earliest_failure_of_the_last_start_is_the_cause_whatever_the_clock_on_the_wall_says(
    tmp_path: Path,
) -> None:
    run_dir = RunDir(tmp_path)
    write(run_dir, 0, 10, start=START - 1)
    write(run_dir, 1, 30)
    write(run_dir, 2, 20)
    (run_dir.failures / "25_rank_3.json").write_text('{"rank": 3, "time')
    (run_dir.failures / "26_rank_3.json").write_text('{"rank": 3, "time_ns": 26}')
    assert [failure.rank for failure in read_failures(run_dir, start=START)] == [2, 1]
    cause = find_cause(run_dir, start=START, exit_codes={1: 1, 2: 1}).text
    assert cause == "rank 2 failed at step 7: ValueError: of 2\nTraceback …"


@pytest.mark.parametrize(
    "lost",
    [
        "RuntimeError: [../third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer",
        "torch.distributed.DistBackendError: NCCL error in: ProcessGroupNCCL.cpp",
    ],
)
def test_a_lost_connection_is_not_the_cause_of_an_error_that_was_reported_later(tmp_path: Path, lost: str) -> None:
    run_dir = RunDir(tmp_path)
    write(run_dir, 0, 10, error="RuntimeError", traceback=f"Traceback …\n{lost}")
    write(run_dir, 1, 20)
    cause = find_cause(run_dir, start=START, exit_codes={0: 1, 1: 1})
    assert cause.text.startswith("rank 1 failed at step 7: ValueError: of 1")
    assert cause.kind < find_cause(run_dir, start=START - 1, exit_codes={}).kind


def test_a_rank_killed_without_a_report_comes_before_what_it_caused(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path)
    write(run_dir, 0, 10, error="RuntimeError", message="Connection closed by peer")
    run_dir.logs.mkdir()
    run_dir.rank_log(1).write_text("Fatal Python error: Segmentation fault\n")
    cause = find_cause(run_dir, start=START, exit_codes={0: 1, 1: -11}).text
    first, *log = cause.splitlines()
    assert first.startswith("rank 1 was killed by SIGSEGV; the last recorded step is 0. Native code crashed;")
    assert log == [
        f"The end of {run_dir.rank_log(1)}:",
        "    Fatal Python error: Segmentation fault",
    ]


def test_an_abort_is_the_cause_only_where_no_rank_raised_an_error_of_its_own(tmp_path: Path) -> None:
    """NCCL aborts a rank that has lost another."""
    run_dir = RunDir(tmp_path)
    write(run_dir, 0, 10)
    assert find_cause(run_dir, start=START, exit_codes={0: 1, 1: -6}).text.startswith("rank 0 failed")
    assert find_cause(run_dir, start=START + 1, exit_codes={0: 1, 1: -6}).text.startswith("rank 0 exited with code 1")
    assert find_cause(run_dir, start=START + 1, exit_codes={1: -6}).text.startswith("rank 1 was killed by SIGABRT")


def test_a_rank_without_a_report_is_reported_with_its_exit_code(tmp_path: Path) -> None:
    cause = find_cause(RunDir(tmp_path), start=START, exit_codes={1: 3}).text
    failures = tmp_path / "failures"
    assert cause == f"rank 1 exited with code 3 without a traceback in {failures}; the last recorded step is 0."


def test_a_rank_that_ended_with_0_before_the_run_was_done_is_named(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path)
    write(run_dir, 0, 10, traceback="gloo/transport/tcp/pair.cc: Connection closed by peer")
    cause = find_cause(run_dir, start=START, exit_codes={1: 0, 0: 1}).text
    first = "rank 1 ended with exit code 0 before the run was done; the last recorded step is 0. Does a hook call"
    assert cause.startswith(first)


def test_an_unknown_cause_is_reported_as_such(tmp_path: Path) -> None:
    cause = find_cause(RunDir(tmp_path), start=START, exit_codes={}).text
    assert cause == "the ranks failed without reporting a cause."


def left(rank: int, monotonic_ns: int, **changes: Any) -> Failure:
    told = {"error": "DiskError", "message": "cannot write it", "traceback": "Traceback …\nDiskError"} | changes
    return Failure(rank=rank, time_ns=1, monotonic_ns=monotonic_ns, start=START, step=7, **told)


def test_a_report_that_the_directory_does_not_take_is_a_cause_as_any_other(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path)
    write(run_dir, 0, 20)
    cause = find_cause(run_dir, start=START, exit_codes={0: 1, 1: 1}, unwritten=[left(1, 10)])
    assert cause.text == "rank 1 failed at step 7: DiskError: cannot write it\nNo report of it could be written."
    assert cause.error == "DiskError"
    cause = find_cause(run_dir, start=START, exit_codes={0: 1, 1: 1}, unwritten=[left(1, 30)])
    assert cause.text.startswith("rank 0 failed at step 7: ValueError: of 0")


@pytest.mark.parametrize("character", ["x", "\U0001f600", "\0"])
def test_a_report_in_memory_keeps_the_begin_of_the_message_and_the_end_of_the_traceback(character: str) -> None:
    room = 64 << 10
    short = left(1, 10)
    assert decode_failure(encode_failure(short, max_bytes=room)) == short
    long = left(1, 10, message="M" + character * 99_999, traceback=character * 99_999 + "T")
    encoded = encode_failure(long, max_bytes=room)
    assert len(encoded) <= room
    kept = decode_failure(encoded)
    assert (kept.rank, kept.error, kept.message[0], kept.traceback[-1]) == (1, "DiskError", "M", "T")
