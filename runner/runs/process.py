"""Launches a run in a process of its own, for a Python program that trains.

A run changes the process that it takes place in: random seeds, torch's settings, signal handlers, sys.path, the log,
and how the process ends. The command has a process to itself, and so has a run that a program starts: it is the same
from a notebook, from a thread, and after a device has been used. The process is a new interpreter: a fork of a program
whose native threads nobody knows may hang, and multiprocessing would run the program's main module again.
"""

import os
import pickle
import signal
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from runner import terminal
from runner.errors import RunFailed, RunnerError
from runner.runs import interpreter
from runner.world.parent import end_with_parent

__all__ = ["launch"]


Ended = tuple[Path | None, RunnerError | KeyboardInterrupt | None]
"""What the process says last: the directory of a run that began, and the error that ended it."""


def launch(function: Callable[..., None], /, **arguments: Any) -> Path:
    """Call `train` or `resume` of this room in a new interpreter that imports what this one can.

    Its output goes to this process's descriptors 1 and 2. An interrupt (Ctrl-C) of this process is passed on, once: the
    run saves a checkpoint and stops; another one kills it. If this process ends, the run stops, too.

    Args:
        function: called with the arguments and with `at_end`.

    Returns:
        The run's directory.

    Raises:
        RunnerError: what the function raised.
        RunFailed: the process ended in another way; stderr has what it said.
        KeyboardInterrupt: this process was interrupted. A note on it says how to continue the run.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    with tempfile.TemporaryFile() as answer:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", __name__, str(answer.fileno()), str(os.getpid())],
            env=os.environ | {"PYTHONPATH": _own_path()},
            stdin=subprocess.PIPE,
            pass_fds=[answer.fileno()],
            process_group=0,  # Ctrl-C reaches this process, which passes it on exactly once
        )
        try:
            process.communicate(pickle.dumps((function, arguments)))
        except BaseException as interrupt:
            _stop(process)
            _, error = _read(answer)
            if isinstance(error, RunnerError):
                interrupt.add_note(str(error))
            raise
        directory, error = _read(answer)
    if error is not None:
        raise error
    if directory is None:
        rule = f"the process of the run ended with exit code {process.returncode}, and stderr has what it said."
        raise RunFailed(rule)
    return directory


def _own_path() -> str:
    """The part of sys.path that no other interpreter has from the start."""
    standard = [sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    own = [path for path in sys.path if not any(Path(path).is_relative_to(one) for one in standard)]
    return os.pathsep.join(path or os.getcwd() for path in own)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Ask it to stop, wait, and kill what is left of it. Another interrupt meanwhile kills it at once."""
    try:
        process.send_signal(signal.SIGINT)
        process.wait()
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _read(file: IO[bytes]) -> Ended:
    file.seek(0)
    content = file.read()
    ended: Ended = pickle.loads(content) if content else (None, None)  # a process of our own wrote it, to no named file
    return ended


def main() -> None:
    """Call the function that stdin has, write how it ended to the descriptor in the arguments, and exit."""
    interpreter.begin()
    descriptor, parent_pid = map(int, sys.argv[1:])
    function, arguments = pickle.load(sys.stdin.buffer)
    os.set_inheritable(descriptor, False)
    end_with_parent(parent_pid, signal.SIGTERM)
    terminal.protect()
    directories: list[Path] = []
    error: RunnerError | KeyboardInterrupt | None = None
    try:
        function(**arguments, at_end=directories.append)
    except (RunnerError, KeyboardInterrupt) as raised:
        error = raised
    with open(descriptor, "wb") as file:
        pickle.dump((directories[0] if directories else None, error), file)
    interpreter.leave(0)


if __name__ == "__main__":
    main()
