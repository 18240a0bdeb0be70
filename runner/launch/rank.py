"""One rank of several, from start to exit: in a forked process or as `python -m runner.launch.rank MODULE SPEC`.

A third argument is the process id of the launcher, with which the rank ends; by default that is its parent.
"""

import ctypes
import faulthandler
import importlib
import os
import signal
import sys
import traceback
from pathlib import Path

from runner.config.masking import scrubber
from runner.config.run_dir import RunDir
from runner.errors import HookError, RankError
from runner.world.handover import receive
from runner.world.identity import find_identity

PR_SET_PDEATHSIG = 1  # linux/prctl.h


def enter(worker: str, spec_path: str, launcher_pid: int) -> None:
    """Run the worker module's `main` in a process made for it, and return when it does."""
    _end_with(launcher_pid)
    _leave_terminal()
    run_dir, rank = RunDir(Path(spec_path).parent), _own_rank()
    run_dir.logs.mkdir(exist_ok=True)
    log = run_dir.rank_log(rank).open("a", buffering=1)
    faulthandler.enable(log)
    if rank == 0:
        run_dir.write_state("running")
    else:
        _redirect_to(log.fileno())
    scrub = scrubber(receive(os.environ).values())
    try:
        _call(worker, spec_path, rank=rank)
    except BaseException:
        log.write(scrub(traceback.format_exc()))
        raise


def _own_rank() -> int:
    identity = find_identity(os.environ)
    if identity is None:
        raise RankError(
            "this process has no rank: start it with torchrun, srun or mpirun, which number their processes."
        )
    return identity.rank


def _call(worker: str, spec_path: str, *, rank: int) -> None:
    try:
        importlib.import_module(worker).main(spec_path)
    except SystemExit as leaving:
        # To torch's agent a rank that called sys.exit(0) is done, while the others wait for it in a collective.
        rule = f"rank {rank} called sys.exit({leaving.code}). Return, or raise an exception, instead."
        raise HookError(rule) from leaving


def _leave_terminal() -> None:
    """Start a session: Ctrl-C reaches only the launcher, and one killpg ends the rank and its data loader's workers.

    A forked rank has inherited the launcher's signal handlers. Without them, SIGTERM kills it at once, even inside a
    collective, where no Python handler would run.
    """
    if os.getsid(0) != os.getpid():
        os.setsid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGALRM):
        signal.signal(number, signal.SIG_DFL)


def _end_with(launcher_pid: int) -> None:
    """Let the system kill this rank when its launcher ends, however that ends. Linux only."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != launcher_pid:
            os._exit(1)  # it ended before the line above


def _redirect_to(descriptor: int) -> None:
    """Send stdout and stderr to this file, whether Python, C++ or a child process writes to them."""
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)


def main() -> None:
    """Be a rank, flush and exit.

    Interpreter exit is skipped: 7 of 30 finished ranks died there with SIGABRT, 0 of 30 that left by os._exit.
    """
    _own_rank()  # its error is printed here; those that follow go to the rank's log
    worker, spec_path, *given = sys.argv[1:]
    code = 1
    try:
        enter(worker, spec_path, int(given[0]) if given else os.getppid())
        code = 0
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    main()
