"""The processes of a run, and programs in front of which no zygote stands."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).parents[2]


def command(project: Path, *argv: str, before: Sequence[str] = (), **options: Any) -> "subprocess.Popen[bytes]":
    """`runner` with these words, in a session of its own, perhaps behind another program."""
    environment = {**os.environ, "PYTHONPATH": f"{CHECKOUT}{os.pathsep}{project}", "OMP_NUM_THREADS": "1"}
    words = [*before, sys.executable, "-m", "runner", *argv]
    return subprocess.Popen(words, cwd=project, env=environment, start_new_session=True, **options)


def children(pid: int) -> list[int]:
    """The processes that it started, the oldest first; none if it has ended."""
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []


def tree(pid: int) -> list[int]:
    """It, and everything below it."""
    return [pid, *(below for child in children(pid) for below in tree(child))]


def alive(pids: Iterable[int]) -> list[int]:
    """Those that run."""
    return [pid for pid in pids if _runs(pid)]


def wait_for(condition: Callable[[], object], what: str, timeout_s: float = 60) -> None:
    """Fail unless it comes true in time."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"no {what} within {timeout_s} s"
        time.sleep(0.02)


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
