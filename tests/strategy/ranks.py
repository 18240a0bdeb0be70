"""Real ranks for tests: a function run in several forked processes on gloo, bounded in time."""

import os
import pickle
import socket
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch

from runner.world.group import GroupWorld


def on_ranks(
    num_ranks: int, function: Callable[..., Any], *args: Any, scratch: Path, timeout_s: float = 60
) -> list[Any]:
    """What function(world, *args) returns on each rank. Fails with the first rank's traceback."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    scratch.mkdir(exist_ok=True)
    pids = [_start(rank, num_ranks, port, function, args, scratch / f"rank_{rank}.pickle") for rank in range(num_ranks)]
    deadline = time.monotonic() + timeout_s
    running = set(pids)
    while running and time.monotonic() < deadline:
        running -= {pid for pid in running if os.waitpid(pid, os.WNOHANG)[0]}
        time.sleep(0.01)
    for pid in running:
        os.kill(pid, 9)
        os.waitpid(pid, 0)
    results = [path.read_bytes() for path in sorted(scratch.glob("rank_*.pickle"))]
    answers = [pickle.loads(result) for result in results]
    failures = [failure for _, failure in answers if failure]
    assert not failures, failures[0]
    assert not running, f"ranks ran past {timeout_s} s"
    assert len(answers) == num_ranks, "a rank died"
    return [answer for answer, _ in answers]


def _start(rank: int, size: int, port: int, function: Callable[..., Any], args: tuple[Any, ...], path: Path) -> int:
    pid = os.fork()
    if pid:
        return pid
    answer = failure = None
    try:
        os.environ |= {
            "RANK": str(rank),
            "WORLD_SIZE": str(size),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
        torch.set_num_threads(1)
        world = GroupWorld(torch.device("cpu"), "gloo", local_rank=rank, timeout=timedelta(seconds=30))
        answer = function(world, *args)
        world.barrier()
    except BaseException:  # noqa: BLE001  whatever it was, the test shows it
        failure = traceback.format_exc()
    path.write_bytes(pickle.dumps((answer, failure)))
    os._exit(0)
