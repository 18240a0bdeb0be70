"""One rank of a run: from the path of its spec to its end."""

import ctypes
import gc
import json
import os
import signal
import sys
import time
import traceback
from datetime import timedelta
from pathlib import Path

import torch._dynamo  # noqa: F401  the first optimizer step imports it; a launcher that forks imports it once for all

from runner import log
from runner.engine import loop
from runner.engine.session import Stopping
from runner.protocols import World
from runner.spec import store
from runner.spec.run_dir import RunDir
from runner.spec.run_spec import RunSpec
from runner.world.group import open_world
from runner.world.stop import StopRequest

COLLECTIVE_TIMEOUT = timedelta(minutes=30)
PR_SET_PDEATHSIG = 1  # linux/prctl.h


def main(spec_path: str) -> None:
    """Be one rank among several, as torch's rendezvous variables say which."""
    stop = StopRequest()
    stop.install(signal.SIGUSR1)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # no rank outlives its launcher
    work(Path(spec_path), stop)


def work(spec_path: Path, stopping: Stopping) -> None:
    """Train as the spec says, in this process.

    Raises:
        Whatever ended the run, after it was written into the run's directory.
    """
    spec = store.read(spec_path)
    run_dir = RunDir(spec_path.parent)
    rank = int(os.environ.get("RANK", "0"))
    log.setup(run_dir.rank_log(rank), rank=rank, console=rank == 0)
    try:
        world = open_world(spec.hardware, timeout=COLLECTIVE_TIMEOUT)
        _train(spec, run_dir, world, stopping)
    except BaseException as error:
        _write_failure(run_dir, rank, error)
        raise


def _train(spec: RunSpec, run_dir: RunDir, world: World, stopping: Stopping) -> None:
    loop.run(spec, run_dir, world, stopping)
    gc.collect()  # a DDP model must be gone before its process group is
    world.barrier()
    world.close()


def _write_failure(run_dir: RunDir, rank: int, error: BaseException) -> None:
    """Leave what happened for whoever asks why the run ended."""
    run_dir.failures.mkdir(exist_ok=True)
    now = time.time_ns()
    told = {
        "rank": rank,
        "time_ns": now,
        "step": run_dir.read_status()["step"],
        "error": type(error).__name__,
        "message": str(error),
        "traceback": "".join(traceback.format_exception(error)),
    }
    (run_dir.failures / f"{now}_rank_{rank}.json").write_text(json.dumps(told, indent=1) + "\n")
