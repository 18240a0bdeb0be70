"""An attempt in a process tree of its own: the job of a sweep, or one of several attempts of one command."""

import contextlib
import multiprocessing
import os
import signal
import sys
from collections.abc import Mapping
from importlib import import_module
from multiprocessing.process import BaseProcess
from pathlib import Path

from runner import terminal
from runner.config.run_dir import RunDir
from runner.config.run_lock import hold
from runner.config.run_spec import RunSpec
from runner.config.secret import Secret
from runner.config.store import StoredSpec
from runner.runs import attempt
from runner.runs.interrupts import StoppedBySignal
from runner.world.fork import can_fork_ranks
from runner.world.parent import end_with_parent
from runner.world.stop import ENDING_SIGNALS

__all__ = ["run_in_child"]


def run_in_child(run_dir: RunDir, stored: StoredSpec, spec: RunSpec, *, command: list[str]) -> int:
    """Freeze a declaration and run it in a process tree of its own, which an interrupt ends as a whole.

    Args:
        run_dir: the run's directory.
        stored: the declaration.
        spec: what it declares.
        command: the command line of this process.

    Returns:
        The exit code that `runner train` would have had; -n = killed by signal n.

    Raises:
        KeyboardInterrupt: inside `interrupted_by_signals`, by a signal, once the attempt has ended.
    """
    with hold(run_dir):  # the process of the attempt takes it over
        spec_path = attempt.begin(run_dir, stored, spec, command=command)
    if spec.hardware.can_fork:
        import_module("runner.worker")  # torch and the engine: once here instead of once in every child
    forks = can_fork_ranks(spec.hardware)
    context = multiprocessing.get_context("fork") if forks else multiprocessing.get_context("spawn")
    process = context.Process(target=_be_job, args=(str(spec_path), os.getpid(), dict(spec.secrets)))
    sys.stdout.flush()
    sys.stderr.flush()
    process.start()
    try:
        process.join()
    except KeyboardInterrupt as stopped:
        _stop(process, stopped.number if isinstance(stopped, StoppedBySignal) else signal.SIGINT)
        raise
    return process.exitcode or 0


def _stop(process: BaseProcess, number: int) -> None:
    """Pass a signal on, wait until the job has ended in its own time, and kill what is left of its process group.

    Another signal meanwhile kills it at once.
    """
    assert process.pid is not None
    try:
        os.kill(process.pid, number)
        process.join()
    finally:
        with contextlib.suppress(ProcessLookupError):  # nothing is left
            os.killpg(process.pid, signal.SIGKILL)
        process.join()


def _be_job(spec_path: str, parent_pid: int, secrets: Mapping[str, Secret]) -> None:
    # A process group of its own: Ctrl-C reaches only its parent, which then interrupts this job exactly once.
    os.setpgrp()
    for number in ENDING_SIGNALS:
        signal.signal(number, signal.default_int_handler)
    terminal.protect()
    # If its parent is killed, the job ends its step and saves a checkpoint, as it does when it is asked to stop.
    end_with_parent(parent_pid, signal.SIGTERM)
    attempt.run_job(Path(spec_path), secrets)
