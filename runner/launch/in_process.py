"""The only rank, in the launching process. A signal asks it to stop; a clock beside it sees to it that it does."""

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
from runner.launch.ending import failed, interrupted, settle
from runner.launch.environment import RENDEZVOUS, environment
from runner.launch.failures import Failure, read_failures
from runner.launch.signals import ECHO_S, STOPPING
from runner.world.stop import StopRequest

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)

# A forked data loader worker inherits the descriptor: its own signals would look like ours.
os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1))


def run(spec_path: Path, *, interrupt_s: float, grace_s: float, worker: str = "runner.worker") -> None:
    """Call the worker module's `work` here, with what says whether to stop. Main thread only.

    Raises:
        RunFailed: it raised.
        Interrupted: a signal ended the run.
    """
    run_dir = RunDir(spec_path.parent)
    started_ns = time.time_ns()
    with (
        _Clock(run_dir, interrupt_s=interrupt_s, grace_s=grace_s),
        _stop_on_signals() as stop,
        environment(dict.fromkeys(RENDEZVOUS)),  # a container may bring RANK along; this is a world of one
    ):
        try:
            importlib.import_module(worker).work(spec_path, stop)
        except (Exception, SystemExit) as error:
            left = read_failures(run_dir, since_ns=started_ns) or [_failure(run_dir, error)]
            raise failed(run_dir, str(left[0]), error=left[0].error) from error
    settle(run_dir)


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
    """A wish to stop that Ctrl-C and its like make in the block; afterwards they do what they did before."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    stop = StopRequest()
    stop.install(*(number for number in SIGNALS if before[number] is not signal.SIG_IGN))  # ignored: by nohup, by `&`
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@final
class _Clock:
    """Ends the process if it does not stop in time after a signal, or at a second one.

    A thread reads the descriptor to which the C part of Python's signal handling writes at once: a Python handler
    would wait for the main thread to come back from whatever C call it sits in. A C call that also keeps the
    interpreter's lock keeps this thread out too: SIGQUIT is the way out then.
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
        deadline = asked_at = float("inf")
        while True:
            left = None if deadline == float("inf") else max(0.0, deadline - time.monotonic())
            ready, _, _ = select.select([self._read], [], [], left)
            numbers = os.read(self._read, 64) if ready else b""
            if 0 in numbers:
                return
            now = time.monotonic()
            asked = [number for number in numbers if number in self._seconds]
            if now >= deadline or (asked and now - asked_at > ECHO_S):
                self._end()
            if asked and deadline == float("inf"):
                asked_at, deadline = now, now + self._seconds[signal.Signals(asked[0])]
                print(STOPPING, file=sys.stderr, flush=True)

    def _end(self) -> None:
        """Leave at once; nothing that the main thread holds is waited for."""
        error = interrupted(self._run_dir)
        for child in multiprocessing.active_children():
            child.kill()
        print(error, file=sys.stderr, flush=True)
        os._exit(error.exit_code)
