"""A worker with the contract of runner.worker: its spec is one line of JSON that says what the ranks do.

`train` takes so many steps of 0.01 s, each with an all_reduce; the other modes bring trouble on one rank at one step.
"""

import ctypes
import json
import os
import signal
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist

from runner.config.failure import describe, write_failure
from runner.config.run_dir import RunDir
from runner.world.activity import Activity, Phase
from runner.world.stop import StopRequest


def work(spec_path: Path, stop: StopRequest, activity: Activity) -> None:
    run_dir, plan = RunDir(spec_path.parent), SimpleNamespace(**json.loads(spec_path.read_text()))
    rank, size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    (run_dir.path / f"pid_{rank}_{time.time_ns()}").write_text(str(os.getpid()))
    torch.set_num_threads(1)
    if size > 1:
        dist.init_process_group("gloo")
    try:
        _loop(run_dir, plan, rank, size, stop, activity)
    except Exception as error:
        _tell(run_dir, rank, error, activity.start)
        raise
    if size > 1:
        dist.barrier()
        dist.destroy_process_group()


def _loop(run_dir: RunDir, plan: Any, rank: int, size: int, stop: StopRequest, activity: Activity) -> None:
    begin = torch.tensor(run_dir.read_status()["step"] if plan.mode != "fail_again" else 0)
    if size > 1:
        dist.broadcast(begin, src=0)
    for step in range(int(begin) + 1, plan.steps + 1):
        if rank == 0:
            run_dir.write_running()
            with run_dir.metrics.open("a") as metrics:
                metrics.write(json.dumps({"step": step, "time_s": 0.0, "train/loss": 1 / step}) + "\n")
        votes = torch.tensor([1.0, float(stop.requested)])
        activity.enter(Phase.STEP, step)
        if size > 1:
            dist.all_reduce(votes)
        activity.enter(Phase.DATA)
        assert votes[0] == size
        if votes[1]:
            _end(run_dir, "preempted", step, rank)
            return
        if step == plan.at and rank == plan.rank:
            _trouble(run_dir, plan.mode, size)
        if plan.mode == "hang_collective" and step == plan.at:
            activity.enter(Phase.STEP)
            dist.all_reduce(votes)
        time.sleep(0.01)
    if plan.mode != "forget":
        _end(run_dir, "done", plan.steps, rank)


def _trouble(run_dir: RunDir, mode: str, size: int) -> None:
    first = not (run_dir.path / "troubled").exists()
    (run_dir.path / "troubled").touch()
    if mode in ("fail", "fail_again"):
        raise ValueError("the loss is a teapot")
    if mode == "slow":
        time.sleep(0.5)
    if mode == "exit":
        sys.exit(0)
    if mode == "leave":
        os._exit(0)
    if mode == "kill" or (mode == "kill_once" and first):
        os.kill(os.getpid(), signal.SIGKILL)
    if mode == "hang_once" and first:
        time.sleep(60)
    if mode in ("hang_c", "hang_collective"):
        print("hanging", flush=True)
        _lock_for_ever() if mode == "hang_c" else time.sleep(60)


def _lock_for_ever() -> None:
    """A C call that no signal handler interrupts: a mutex locked twice. As torch's calls do, it lets the GIL go."""
    mutex = ctypes.create_string_buffer(64)
    for _ in range(2):
        ctypes.CDLL(None).pthread_mutex_lock(mutex)


def _end(run_dir: RunDir, state: str, step: int, rank: int) -> None:
    if rank == 0:
        run_dir.write_status(state, step=step, metrics={"train/loss": 1 / step})


def _tell(run_dir: RunDir, rank: int, error: Exception, start: int) -> None:
    """In one rename: the launcher ends this rank when it hears of another one."""
    step = run_dir.read_status()["step"]
    write_failure(run_dir, describe(error, rank=rank, start=start, step=step))
