"""Two real gloo ranks agree, in every way that the engine asks."""

import multiprocessing
import os
import socket
import traceback
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch

from runner.hardware.cpu import CPU
from runner.protocols import Axes, Axis
from runner.world.identity import find_identity
from runner.world.opening import open_world

LENGTHS = [*range(970, 1030), 100_000]
"""Bytes that rank 1 brings to a gathering; the first message has room for about a thousand."""


def threads() -> list[str]:
    """The names of this process's threads, torch's own included."""
    return [task.joinpath("comm").read_text().strip() for task in Path("/proc/self/task").iterdir()]


def _rank(rank: Any, port: Any, answers: Any) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    try:
        axes = Axes(names=(Axis.REPLICATE,), sizes=(2,), data=(Axis.REPLICATE,))
        world = open_world(CPU(processes=2), axes, find_identity(os.environ), timeout=timedelta(seconds=30))
        mine = torch.tensor([float(rank), 10.0])
        finish = world.start_sum(torch.tensor(rank + 1))
        order = []
        with world.main_first():
            order.append(world.rank)
        answers.put(
            {
                "rank": world.rank,
                "size": world.size,
                "main": world.is_main,
                "sum": world.sum(mine).tolist(),
                "untouched": mine.tolist(),
                "started": int(finish()),
                "broadcast": world.broadcast_object({"from": world.rank}),
                "gathered": world.gather_objects(("rank", world.rank)),
                "lengths": [[len(one) for one in world.gather_objects(bytes(n * rank))] for n in LENGTHS],
                "any": (world.any(rank == 1), world.any(False)),
                "threads": torch.get_num_threads(),
            }
        )
        world.mesh()
        del finish  # it has the group
        world.barrier()
        world.close()
        left = [thread for thread in threads() if thread.startswith(("pt_", "gloo"))]
        assert not left, f"{left}: a thread that outlives the interpreter may abort the process"
    except BaseException:
        answers.put({"rank": rank, "error": traceback.format_exc()})
        raise


def test_two_ranks_agree() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    ranks = [context.Process(target=_rank, args=(rank, port, answers), daemon=True) for rank in range(2)]
    for process in ranks:
        process.start()
    told = sorted((answers.get(timeout=60) for _ in ranks), key=lambda answer: answer["rank"])
    for process in ranks:
        process.join(timeout=30)
        assert process.exitcode == 0, told
    cores = len(os.sched_getaffinity(0))
    for rank, answer in enumerate(told):
        assert answer == {
            "rank": rank,
            "size": 2,
            "main": rank == 0,
            "sum": [1.0, 20.0],
            "untouched": [float(rank), 10.0],
            "started": 3,
            "broadcast": {"from": 0},
            "gathered": [("rank", 0), ("rank", 1)],
            "lengths": [[0, n] for n in LENGTHS],
            "any": (True, False),
            "threads": max(1, cores // 2),
        }
    answers.close()
    answers.join_thread()
