"""One run of the self-test, in a process of its own. Its output goes to a file; it is ended if it takes too long."""

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

from runner import terminal
from runner.errors import RunnerError
from runner.world.fork import can_fork
from runner.world.parent import end_with_parent
from runner.world.stop import ENDING_SIGNALS

__all__ = ["RunError", "call"]

DUMP_S = 3.0
"""How long a run that took too long has to write its stacks and to end its ranks."""


class RunError(Exception):
    """A run that failed or took too long. Says where its output is."""

    def __init__(self, reason: str, log: Path) -> None:
        super().__init__(reason)
        self.log = log


def call(function: Callable[[], None], *, directory: Path, log: Path, timeout_s: float, forks: bool) -> None:
    """Call a function that starts a run.

    Args:
        directory: its working directory.
        log: the file that gets its output.
        timeout_s: how long it may take.
        forks: whether its devices allow a fork of this process, which has imported what it needs.

    Raises:
        RunError: it failed or took too long.
    """
    forking, spawning = multiprocessing.get_context("fork"), multiprocessing.get_context("spawn")
    context = forking if forks and can_fork() else spawning
    sys.stdout.flush()
    sys.stderr.flush()
    process: BaseProcess = context.Process(target=_enter, args=(function, str(directory), str(log), os.getpid()))
    process.start()
    try:
        process.join(timeout_s)
        if process.exitcode is None:
            raise RunError(f"it has not ended after {timeout_s:g} s", log)
    finally:
        _end(process)
    if process.exitcode:
        raise RunError(f"it ended with exit code {process.exitcode}", log)


def _end(process: BaseProcess) -> None:
    """End it and its ranks, if it has not ended: the stacks of their threads go to their logs."""
    assert process.pid is not None
    if process.exitcode is None:
        os.kill(process.pid, signal.SIGQUIT)
        process.join(DUMP_S)
    if process.exitcode is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.join()


def _enter(function: Callable[[], None], directory: str, log: str, parent_pid: int) -> None:
    os.setpgrp()  # Ctrl-C reaches the self-test alone, which ends this process
    end_with_parent(parent_pid)
    for number in ENDING_SIGNALS:
        signal.signal(number, signal.default_int_handler)
    for path, mode, descriptors in ((os.devnull, os.O_RDONLY, (0,)), (log, os.O_WRONLY | os.O_CREAT, (1, 2))):
        opened = os.open(path, mode)
        for descriptor in descriptors:
            os.dup2(opened, descriptor)
        os.close(opened)
    os.chdir(directory)
    sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__  # a program may have put others in their place
    terminal.protect()
    try:
        function()
    except RunnerError as error:
        print(f"{error}", file=sys.stderr)
        sys.exit(error.exit_code)
