"""One rank of several, from start to exit: in a forked process or as `python -m runner.launch.rank MODULE SPEC`.

Two further arguments are the process id of the launcher, with which the rank ends (by default that is its parent), and
the path of the memory in which the rank notes what it does (by default nobody reads it).
"""

import contextlib
import faulthandler
import importlib
import os
import signal
import sys
import traceback
from pathlib import Path
from typing import NoReturn, TextIO

from runner import terminal
from runner.config.masking import scrubber
from runner.config.run_dir import RunDir
from runner.errors import HookError, RankError
from runner.world.activity import UNREAD, Activity, Phase
from runner.world.handover import receive
from runner.world.identity import find_identity
from runner.world.parent import end_with_parent, kill_data_workers
from runner.world.stop import ENDING_SIGNALS, STOP_SIGNALS, StopRequest

DUMP_STACKS = signal.SIGURG
"""Makes a rank and its data workers write the stacks of their threads to the rank's log. Ignored by other processes."""


def enter(worker: str, spec_path: str, launcher_pid: int, activity_path: str | None = None) -> None:
    """Run the worker module's `work` in a process made for it, and return when it does.

    An error ends the process here, with exit code 1: torch would leave a pickled traceback in the system's temporary
    directory.
    """
    end_with_parent(launcher_pid)
    stop = _leave_terminal()
    try:
        rank = _own_rank()
        run_dir = RunDir(Path(spec_path).parent)
        run_dir.logs.mkdir(exist_ok=True)
        log = run_dir.rank_log(rank).open("a", buffering=1)
        scrub = scrubber(receive(os.environ).values())
    except BaseException:  # noqa: BLE001  the process ends here
        traceback.print_exc()
        _leave(1)
    try:
        _work(worker, Path(spec_path), stop, activity_path, rank=rank, log=log)
    except BaseException:  # noqa: BLE001  the process ends here
        with contextlib.suppress(OSError):  # on a device that fails; the launcher knows it from this rank's report
            log.write(scrub(traceback.format_exc()))
        _leave(1)


def _work(
    worker: str, spec_path: Path, stop: StopRequest, activity_path: str | None, *, rank: int, log: TextIO
) -> None:
    faulthandler.enable(log)
    faulthandler.register(DUMP_STACKS, log)
    if rank == 0:
        RunDir(spec_path.parent).write_running()
    else:
        _redirect_to(log.fileno())
    activity = _activity(activity_path)
    try:
        importlib.import_module(worker).work(spec_path, stop, activity)
    except SystemExit as leaving:
        # To torch's agent a rank that called sys.exit(0) is done, while the others wait for it in a collective.
        rule = f"rank {rank} called sys.exit({leaving.code}). Return, or raise an exception, instead."
        raise HookError(rule) from leaving
    kill_data_workers()
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)  # there is nothing left to stop
    activity.enter(Phase.FINISHED)


def _own_rank() -> int:
    identity = find_identity(os.environ)
    if identity is None:
        raise RankError(
            "this process has no rank: start it with torchrun, srun or mpirun, which number their processes."
        )
    return identity.rank


def _activity(path: str | None) -> Activity:
    identity = find_identity(os.environ)
    assert identity is not None
    return UNREAD if path is None else Activity.open(path, local_rank=identity.local_rank)


def _leave_terminal() -> StopRequest:
    """Start a session, and let signals that reach this rank alone ask the whole run to stop.

    In a session of its own, Ctrl-C reaches only the launcher, and one killpg ends the rank and its data workers. The
    launcher has held back the signals that arrived while this process started.
    """
    if os.getsid(0) != os.getpid():
        os.setsid()
    stop = StopRequest()
    stop.install(*STOP_SIGNALS)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for number in (signal.SIGALRM, signal.SIGQUIT):  # a forked rank has inherited the launcher's handlers
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING_SIGNALS)
    return stop


def _redirect_to(descriptor: int) -> None:
    """Send stdout and stderr to this file, whether Python, C++ or a child process writes to them."""
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)


def _leave(code: int) -> NoReturn:
    """Flush and exit without the interpreter's own end.

    7 of 30 finished ranks died there with SIGABRT, 0 of 30 that left by os._exit.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def main() -> None:
    """Be a rank, flush and exit."""
    terminal.protect()
    _own_rank()  # its error is printed here; those that follow go to the rank's log
    worker, spec_path, *given = sys.argv[1:]
    enter(worker, spec_path, int(given[0]) if given else os.getppid(), *given[1:2])
    _leave(0)


if __name__ == "__main__":
    main()
