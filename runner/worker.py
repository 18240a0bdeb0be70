"""Runs one rank: reads the spec, trains or does another task with it, and reports errors."""

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from runner import log
from runner.config import store
from runner.config.failure import describe, encode_failure, write_failure
from runner.config.masking import scrub_error, scrubber
from runner.config.run_dir import RunDir
from runner.config.run_spec import RunSpec
from runner.config.task import JOB, read_task
from runner.engine.job import perform
from runner.engine.loop import train
from runner.engine.out_of_memory import report_out_of_memory
from runner.engine.session import Stopping, open_session
from runner.protocols import World
from runner.world.activity import Activity, Phase
from runner.world.handover import receive
from runner.world.identity import find_identity
from runner.world.memory import keep_freed_blocks
from runner.world.opening import open_world

LAUNCHER_FIRST_S = 60.0
"""How much longer torch waits in a collective than the launcher, which can name the rank that is missing."""


def work(spec_path: Path, stopping: Stopping, activity: Activity) -> None:
    """Train as the spec says, or do the task beside it, here, as the rank that torch's rendezvous variables describe.

    Args:
        spec_path: the frozen declaration, in its run's directory.
        stopping: whether somebody asked the run to stop.
        activity: tells the launcher what this rank does.

    Raises:
        The error that ended the run, after recording it in the run's directory.
    """
    run_dir = RunDir(spec_path.parent)
    identity = find_identity(os.environ)
    rank = 0 if identity is None else identity.rank
    log.setup(run_dir.rank_log(rank), rank=rank, console=rank == 0)
    with _reporting(run_dir, rank, activity) as run_progress, report_out_of_memory():
        spec = store.read(spec_path, receive(os.environ))
        run_progress.scrub = scrubber(spec.secrets.values())
        log.scrub(run_progress.scrub)
        axes = spec.strategy.axes(spec.world_size)
        timeout = timedelta(seconds=spec.hardware.timeout_s + LAUNCHER_FIRST_S)
        world = open_world(spec.hardware, axes, identity, timeout=timeout, activity=activity)
        activity.enter(Phase.BUILDING)
        keep_freed_blocks()
        with _debugging(spec, world):
            # The session must be freed before its world closes: a DDP model's destructor has hung without a group.
            task = read_task(run_dir) if spec_path.name == JOB else None
            if task is None:
                _train(spec, run_dir, world, stopping, activity, run_progress)
            else:
                perform(task, spec, run_dir, world, stopping, activity)
            world.barrier()
        world.close()


def _debugging(spec: RunSpec, world: World) -> AbstractContextManager[None]:
    """Compares the collectives of the ranks, if the run asks for it."""
    if not spec.run.debug or world.size == 1:
        return nullcontext()
    from runner.world.debug import compared_collectives

    return compared_collectives(world)


def _train(
    spec: RunSpec, run_dir: RunDir, world: World, stopping: Stopping, activity: Activity, run_progress: "_RunProgress"
) -> None:
    recorded = run_progress.step
    with open_session(spec, run_dir, world, stopping, activity) as session:
        run_progress.step = lambda: session.training.step
        session.outcome = train(session)
    run_progress.step = recorded  # the other one keeps the session


@dataclass(kw_only=True)
class _RunProgress:
    """The progress of the run, for failure reports."""

    step: Callable[[], int]
    scrub: Callable[[str], str] = str
    """Takes the run's secrets out of a text."""


@contextmanager
def _reporting(run_dir: RunDir, rank: int, activity: Activity) -> Iterator[_RunProgress]:
    """Record the error that ends the block in the run's directory, for the launcher and the user.

    The launcher alone hears of it where the directory does not take it.
    """
    run_progress = _RunProgress(step=run_dir.last_step)
    try:
        yield run_progress
    except BaseException as error:
        scrub_error(error, run_progress.scrub)
        failure = describe(error, rank=rank, start=activity.start, step=run_progress.step(), scrub=run_progress.scrub)
        try:
            write_failure(run_dir, failure)
        except OSError as unwritten:
            error.add_note(f"{unwritten.filename} could not be written: {unwritten.strerror}")
            activity.leave_report(encode_failure(failure, max_bytes=activity.max_report_bytes))
        raise
