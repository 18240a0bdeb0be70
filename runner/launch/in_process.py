"""A single rank, in the launching process. A signal asks it to stop, and a timer ends the process if it does not."""

import faulthandler
import importlib
import multiprocessing
import os
import select
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from types import FrameType
from typing import Self, TextIO, final

from runner import terminal
from runner.config.failure import decode_failure, describe
from runner.config.run_dir import RunDir
from runner.launch.failures import read_failures
from runner.launch.outcome import check_done, failed, interrupted, write_final_state
from runner.launch.rank import DUMP_STACKS
from runner.launch.signals import ECHO_S, ENDING, STOPPING
from runner.world.activity import ActivityTable
from runner.world.environment import environment
from runner.world.identity import VARIABLES
from runner.world.parent import kill_data_workers
from runner.world.stop import ENDING_SIGNALS, STOP_SIGNALS, StopRequest

RANK_VARIABLES = (*VARIABLES, "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT")

# A forked data loader worker inherits the descriptor: its own signals would look like ours.
os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1))


def run(spec_path: Path, *, interrupt_s: float, grace_s: float, worker: str = "runner.worker") -> None:
    """Call the worker module's `work` in this process, with a StopRequest that signals set. Main thread only.

    Raises:
        RunFailed: it raised.
        Interrupted: a signal ended the run.
    """
    run_dir = RunDir(spec_path.parent)
    with (
        closing(ActivityTable(1)) as table,
        _stacks_in(run_dir) as log,
        _Timer(run_dir, log, interrupt_s=interrupt_s, grace_s=grace_s),
        _stop_on_signals() as stop,
        environment(dict.fromkeys(RANK_VARIABLES)),  # a container or srun may have set some; this is a world of one
    ):
        start = table.begin()
        run_dir.write_running()
        try:
            importlib.import_module(worker).work(spec_path, stop, table.of(0))
        except (Exception, SystemExit) as error:
            unwritten = [decode_failure(report) for report in table.reports()]
            failures = read_failures(run_dir, start=start, unwritten=unwritten)
            failures = failures or [describe(error, rank=0, start=start, step=run_dir.last_step())]
            raise failed(run_dir, str(failures[0]), error=failures[0].error) from error
        finally:
            kill_data_workers()
    check_done(run_dir)


@contextmanager
def _stacks_in(run_dir: RunDir) -> Iterator[TextIO]:
    """The rank's log, to which DUMP_STACKS writes the stacks of all threads in the block."""
    run_dir.logs.mkdir(exist_ok=True)
    with run_dir.rank_log(0).open("a", buffering=1) as log:
        faulthandler.register(DUMP_STACKS, log)
        try:
            yield log
        finally:
            faulthandler.unregister(DUMP_STACKS)


@contextmanager
def _stop_on_signals() -> Iterator[StopRequest]:
    """A request to stop, set by Ctrl-C and the other signals in the block. Their handlers are restored afterwards."""
    before = {number: signal.getsignal(number) for number in ENDING_SIGNALS}
    stop = StopRequest()
    stop.install(*(number for number in STOP_SIGNALS if before[number] is not signal.SIG_IGN))  # nohup and `&`
    signal.signal(signal.SIGQUIT, _left_to_the_timer)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _left_to_the_timer(signum: int, frame: FrameType | None) -> None:
    """Do nothing, so that the signal reaches the descriptor that the timer reads."""


@final
class _Timer:
    """Ends the process if it does not stop in time after a signal, or at a second signal.

    A thread reads the descriptor to which the C part of Python's signal handling writes at once: a Python handler would
    have to wait until the main thread returns from its current C call. A C call that also holds the GIL blocks this
    thread as well; only SIGKILL ends the process then.
    """

    def __init__(self, run_dir: RunDir, log: TextIO, *, interrupt_s: float, grace_s: float) -> None:
        self._run_dir = run_dir
        self._log = log
        self._seconds = dict.fromkeys(STOP_SIGNALS, grace_s) | {signal.SIGINT: interrupt_s}
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
            received = [signal.Signals(number) for number in numbers if number in self._seconds]
            if signal.SIGQUIT in numbers:
                terminal.write(2, f"{ENDING}\n")
                faulthandler.dump_traceback(self._log)
                self._end()
            if now >= deadline or (signal.SIGINT in received and now - requested_at > ECHO_S):
                self._end()
            if received and deadline == float("inf"):
                requested_at, deadline = now, now + self._seconds[received[0]]
                terminal.write(2, f"{STOPPING}\n")

    def _end(self) -> None:
        """Exit at once, without waiting for the main thread."""
        error = interrupted(self._run_dir)
        write_final_state(self._run_dir, "preempted")
        for child in multiprocessing.active_children():
            child.kill()
        terminal.write(2, f"{error}\n")
        os._exit(error.exit_code)
