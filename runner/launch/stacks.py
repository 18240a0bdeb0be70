"""The stacks of ranks and of their child processes, written by themselves to the ranks' logs when they are asked to."""

import contextlib
import os
import re
import signal
import time
from collections.abc import Mapping
from pathlib import Path

from runner.config.run_dir import RunDir
from runner.launch.rank import DUMP_STACKS
from runner.launch.rank import __file__ as rank_file

__all__ = ["collect_stacks", "innermost_file", "is_stopped"]

SETTLED_S = 0.1
"""A stack is complete when its log has not grown for so long."""
LONGEST_S = 1.0
BEGINNING = re.compile(rf'^  File "{re.escape(rank_file)}", line \d+ in ', re.MULTILINE)
"""The calls below are those that started the rank, in a forked one the launcher's."""
FRAME = re.compile(r'^  File "(.*)", line \d+ in ', re.MULTILINE)


def collect_stacks(run_dir: RunDir, pids: Mapping[int, int]) -> dict[int, str]:
    """Make every rank, and then its children (data workers), write the stacks of its threads to its log.

    A rank in a C call writes its own too. One that was stopped (SIGSTOP) goes on.

    Args:
        run_dir: the run's directory.
        pids: the process of each rank.

    Returns:
        The stack of each rank's main thread, most recent call first; "" if it wrote none.
    """
    children = {rank: _children(pid) for rank, pid in pids.items()}
    stacks = _dump(run_dir, pids, "stacks of all threads, most recent call first:")
    for number in range(max(map(len, children.values()), default=0)):
        ones = {rank: found[number] for rank, found in children.items() if len(found) > number}
        _dump(run_dir, ones, "stacks of a child process:")
    return {rank: _main_thread(text) for rank, text in stacks.items()}


def innermost_file(stack: str) -> str:
    """The file of the call in which a thread is; "" if its stack is not known."""
    found = FRAME.search(stack)
    return found[1] if found else ""


def is_stopped(pid: int) -> bool:
    """Whether the process was stopped (SIGSTOP, or a debugger). Linux only."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "tT"
    return False


def _dump(run_dir: RunDir, pids: Mapping[int, int], title: str) -> dict[int, str]:
    """One process of each rank at a time: they share its log."""
    logs = {rank: run_dir.rank_log(rank) for rank in pids}
    sizes = {}
    for rank, pid in pids.items():
        with contextlib.suppress(OSError), logs[rank].open("a") as log:
            log.write(f"process {pid}, {title}\n")
        sizes[rank] = _size(logs[rank])
        for number in (DUMP_STACKS, signal.SIGCONT):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, number)
    _wait_until_settled(list(logs.values()))
    return {rank: _read_from(logs[rank], size) for rank, size in sizes.items()}


def _wait_until_settled(logs: list[Path]) -> None:
    end = time.monotonic() + LONGEST_S
    before = [_size(log) for log in logs]
    while time.monotonic() < end:
        time.sleep(SETTLED_S)
        now = [_size(log) for log in logs]
        if now == before:
            return
        before = now


def _main_thread(text: str) -> str:
    """The last one, down to where the rank began: faulthandler writes the newest thread first."""
    thread = re.split(r"^(?:Current thread|Thread) 0x.*\n", text, flags=re.MULTILINE)[-1]
    return BEGINNING.split(thread)[0].rstrip() if text else ""


def _read_from(log: Path, size: int) -> str:
    with contextlib.suppress(OSError), log.open("rb") as file:
        file.seek(size)
        return file.read().decode(errors="replace")
    return ""


def _size(log: Path) -> int:
    return log.stat().st_size if log.exists() else 0


def _children(pid: int) -> list[int]:
    listed = Path(f"/proc/{pid}/task/{pid}/children")
    with contextlib.suppress(OSError):
        return [int(child) for child in listed.read_text().split()]
    return []
