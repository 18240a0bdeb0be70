"""One rank of many, from its first moment to its exit. `python -m runner.launch.rank MODULE SPEC` is one, too."""

import faulthandler
import importlib
import os
import signal
import sys
import traceback
from pathlib import Path

from runner.config.run_dir import RunDir
from runner.errors import HookError


def enter(worker: str, spec_path: str) -> None:
    """Run the worker module's `main` in a process made for it, and return when it does."""
    _leave_the_terminal()
    log_path = RunDir(Path(spec_path).parent).rank_log(int(os.environ["RANK"]))
    log_path.parent.mkdir(exist_ok=True)
    log = log_path.open("a", buffering=1)
    faulthandler.enable(log)
    if os.environ["RANK"] != "0":
        _redirect_to(log.fileno())
    try:
        _call(worker, spec_path)
    except BaseException:
        traceback.print_exc(file=log)
        raise


def _call(worker: str, spec_path: str) -> None:
    try:
        importlib.import_module(worker).main(spec_path)
    except SystemExit as leaving:
        # Torch's agent takes sys.exit(0) for a rank that is done, while the others wait for it in a collective.
        raise HookError(
            f"rank {os.environ['RANK']} was left by sys.exit({leaving.code}). Return or raise."
        ) from leaving


def _leave_the_terminal() -> None:
    """Become a session: Ctrl-C reaches the launcher alone, and one killpg ends the rank with its data loader's workers.

    A forked rank also inherits the launcher's handlers, which are not its own. SIGTERM kills at once, even inside a
    collective, where no Python handler would run.
    """
    if os.getsid(0) != os.getpid():
        os.setsid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGALRM):
        signal.signal(number, signal.SIG_DFL)


def _redirect_to(descriptor: int) -> None:
    """Send stdout and stderr there, whoever writes to them: Python, C++ or a child process."""
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)


def main() -> None:
    """Enter, flush and leave.

    Interpreter exit is skipped: 7 of 30 finished ranks died there with SIGABRT, 0 of 30 that left by os._exit.
    """
    code = 1
    try:
        enter(*sys.argv[1:])
        code = 0
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    main()
