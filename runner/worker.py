"""Runs one rank: reads the spec, trains, and reports errors."""

import json
import os
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch._dynamo  # noqa: F401  the first optimizer step needs it; a launcher that forks imports it once for all ranks

from runner import durable, log
from runner.config import store
from runner.config.masking import scrub_error, scrubber
from runner.config.run_dir import RunDir
from runner.engine.loop import train
from runner.engine.out_of_memory import report_out_of_memory
from runner.engine.session import Stopping, open_session
from runner.protocols import World
from runner.world.group import open_world
from runner.world.handover import receive
from runner.world.identity import find_identity
from runner.world.stop import StopRequest

COLLECTIVE_TIMEOUT = timedelta(minutes=30)


def main(spec_path: str) -> None:
    """Run the rank that torch's rendezvous variables describe."""
    stop = StopRequest()
    stop.install(signal.SIGUSR1)
    work(Path(spec_path), stop)


def work(spec_path: Path, stopping: Stopping) -> None:
    """Train as the spec says, in this process.

    Raises:
        The error that ended the run, after recording it in the run's directory.
    """
    # The session must be freed before its world closes: a DDP model's destructor has hung without its process group.
    world = _train(spec_path, stopping)
    world.barrier()
    world.close()


def _train(spec_path: Path, stopping: Stopping) -> World:
    run_dir = RunDir(spec_path.parent)
    identity = find_identity(os.environ)
    rank = 0 if identity is None else identity.rank
    log.setup(run_dir.rank_log(rank), rank=rank, console=rank == 0)
    with _reporting(run_dir, rank) as run_progress, report_out_of_memory():
        spec = store.read(spec_path, receive(os.environ))
        run_progress.scrub = scrubber(spec.secrets.values())
        log.scrub(run_progress.scrub)
        axes = spec.strategy.axes(spec.world_size)
        world = open_world(spec.hardware, axes, identity, timeout=COLLECTIVE_TIMEOUT)
        with open_session(spec, run_dir, world, stopping) as session:
            run_progress.step = lambda: session.training.step
            session.outcome = train(session)
    return world


@dataclass(kw_only=True)
class _RunProgress:
    """The progress of the run, for failure reports."""

    step: Callable[[], int]
    scrub: Callable[[str], str] = str
    """Takes the run's secrets out of a text."""


@contextmanager
def _reporting(run_dir: RunDir, rank: int) -> Iterator[_RunProgress]:
    """Record the error that ends the block in the run's directory, for the launcher and the user."""
    run_progress = _RunProgress(step=lambda: int(run_dir.read_status()["step"]))
    try:
        yield run_progress
    except BaseException as error:
        now = time.time_ns()
        scrub_error(error, run_progress.scrub)
        failure = {
            "rank": rank,
            "time_ns": now,
            "step": run_progress.step(),
            "error": type(error).__name__,
            "message": run_progress.scrub(str(error)),
            "traceback": run_progress.scrub("".join(traceback.format_exception(error))),
        }
        run_dir.failures.mkdir(exist_ok=True)
        path = run_dir.failures / f"{now}_rank_{rank}.json"
        durable.replace(path, json.dumps(failure, indent=1) + "\n")
        raise
