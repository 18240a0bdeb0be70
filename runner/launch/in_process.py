"""A single rank, in the launching process. A signal asks it to stop, and a timer ends the process if it does not."""

import importlib
import multiprocessing
import os
import select
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self, final

from runner.config.run_dir import RunDir
from runner.launch.failures import Failure, read_failures
from runner.launch.outcome import check_done, failed, interrupted
from runner.launch.signals import ECHO_S, STOPPING
from runner.world.environment import environment
from runner.world.identity import VARIABLES
from runner.world.stop import StopRequest

RANK_VARIABLES = (*VARIABLES, "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT")
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)

# A forked data loader worker inherits the descriptor: its own signals would look like ours.
os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1))


def run(spec_path: Path, *, interrupt_s: float, grace_s: float, worker: str = "runner.worker") -> None:
    """Call the worker module's `work` in this process, with a StopRequest that signals set. Main thread only.

    Raises:
        RunFailed: it raised.
        Interrupted: a signal ended the run.
    """
    run_dir = RunDir(spec_path.parent)
    started_ns = time.time_ns()
    with (
        _Timer(run_dir, interrupt_s=interrupt_s, grace_s=grace_s),
        _stop_on_signals() as stop,
        environment(dict.fromkeys(RANK_VARIABLES)),  # a container or srun may have set some; this is a world of one
    ):
        run_dir.write_state("running")
        try:
            importlib.import_module(worker).work(spec_path, stop)
        except (Exception, SystemExit) as error:
            failures = read_failures(run_dir, since_ns=started_ns) or [_failure(run_dir, error)]
            raise failed(run_dir, str(failures[0]), error=failures[0].error) from error
    check_done(run_dir)


def _failure(run_dir: RunDir, error: BaseException) -> Failure:
    return Failure(
        rank=0,
        time_ns=time.time_ns(),
        step=run_dir.read_status()["step"],
        error=type(error).__name__,
        message=str(error),
        traceback="".join(traceback.format_exception(error)),
    )


@contextmanager
def _stop_on_signals() -> Iterator[StopRequest]:
    """A request to stop, set by Ctrl-C and the other signals in the block. Their handlers are restored afterwards."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    stop = StopRequest()
    stop.install(*(number for number in SIGNALS if before[number] is not signal.SIG_IGN))  # nohup and `&` ignore some
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@final
class _Timer:
    """Ends the process if it does not stop in time after a signal, or at a second signal.

    A thread reads the descriptor to which the C part of Python's signal handling writes at once: a Python handler would
    have to wait until the main thread returns from its current C call. A C call that also holds the GIL blocks this
    thread as well; only SIGQUIT ends the process then.
    """

    def __init__(self, run_dir: RunDir, *, interrupt_s: float, grace_s: float) -> None:
        self._run_dir = run_dir
        self._seconds = dict.fromkeys(SIGNALS, grace_s) | {signal.SIGINT: interrupt_s}
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        self._thread = threading.Thread(target=self._watch, name="runner-signals", daemon=True)
        self._before = -1

    def __enter__(self) -> Self:
        self._before = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        signal.set_wakeup_fd(self._before)
        os.write(self._write, b"\0")
        self._thread.join()
        os.close(self._read)
        os.close(self._write)

    def _watch(self) -> None:
        deadline = requested_at = float("inf")
        while True:
            timeout = None if deadline == float("inf") else max(0.0, deadline - time.monotonic())
            ready, _, _ = select.select([self._read], [], [], timeout)
            numbers = os.read(self._read, 64) if ready else b""
            if 0 in numbers:
                return
            now = time.monotonic()
            received = [number for number in numbers if number in self._seconds]
            if now >= deadline or (received and now - requested_at > ECHO_S):
                self._end()
            if received and deadline == float("inf"):
                requested_at, deadline = now, now + self._seconds[signal.Signals(received[0])]
                print(STOPPING, file=sys.stderr, flush=True)

    def _end(self) -> None:
        """Exit at once, without waiting for the main thread."""
        error = interrupted(self._run_dir)
        for child in multiprocessing.active_children():
            child.kill()
        print(error, file=sys.stderr, flush=True)
        os._exit(error.exit_code)
