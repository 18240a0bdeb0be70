"""One rank of a run: from the path of its spec to its end."""

import ctypes
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch._dynamo  # noqa: F401  the first optimizer step imports it; a launcher that forks imports it once for all

from runner import log
from runner.config import store
from runner.config.run_dir import RunDir
from runner.engine.loop import train
from runner.engine.out_of_memory import out_of_memory_named
from runner.engine.session import Stopping, open_session
from runner.protocols import World
from runner.world.group import open_world
from runner.world.identity import find_identity
from runner.world.stop import StopRequest

COLLECTIVE_TIMEOUT = timedelta(minutes=30)
PR_SET_PDEATHSIG = 1  # linux/prctl.h


def main(spec_path: str) -> None:
    """Be one rank among several, as torch's rendezvous variables say which."""
    stop = StopRequest()
    stop.install(signal.SIGUSR1)
    if sys.platform == "linux":
        launcher = os.getppid()
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # no rank outlives its launcher,
        if os.getppid() != launcher:  # nor does one whose launcher died just before
            os._exit(1)
    work(Path(spec_path), stop)


def work(spec_path: Path, stopping: Stopping) -> None:
    """Train as the spec says, in this process.

    Raises:
        Whatever ended the run, after it was written into the run's directory.
    """
    # The session is gone when its world closes: the destructor of a DDP model that outlived its process group has hung.
    world = _train(spec_path, stopping)
    world.barrier()
    world.close()


def _train(spec_path: Path, stopping: Stopping) -> World:
    run_dir = RunDir(spec_path.parent)
    identity = find_identity(os.environ)
    rank = 0 if identity is None else identity.rank
    log.setup(run_dir.rank_log(rank), rank=rank, console=rank == 0)
    with _reporting(run_dir, rank) as standing, out_of_memory_named():
        spec = store.read(spec_path)
        axes = spec.strategy.axes(spec.world_size)
        world = open_world(spec.hardware, axes, identity, timeout=COLLECTIVE_TIMEOUT)
        with open_session(spec, run_dir, world, stopping) as session:
            standing.step = lambda: session.training.step
            session.outcome = train(session)
    return world


@dataclass(kw_only=True)
class _Standing:
    """How far the run is."""

    step: Callable[[], int]


@contextmanager
def _reporting(run_dir: RunDir, rank: int) -> Iterator[_Standing]:
    """Write what ends the block into the run's directory, for whoever asks why the run ended."""
    standing = _Standing(step=lambda: int(run_dir.read_status()["step"]))
    try:
        yield standing
    except BaseException as error:
        now = time.time_ns()
        failure = {
            "rank": rank,
            "time_ns": now,
            "step": standing.step(),
            "error": type(error).__name__,
            "message": str(error),
            "traceback": "".join(traceback.format_exception(error)),
        }
        run_dir.failures.mkdir(exist_ok=True)
        path = run_dir.failures / f"{now}_rank_{rank}.json"
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(failure, indent=1) + "\n")
        partial.rename(path)
        raise
