"""Ending with the process that started this one, and ending those that this one started."""

import ctypes
import multiprocessing
import os
import signal
import sys

__all__ = ["end_with_parent", "kill_data_workers"]

PR_SET_PDEATHSIG = 1  # linux/prctl.h


def end_with_parent(parent_pid: int, number: signal.Signals = signal.SIGKILL) -> None:
    """Let the system send this process a signal when its parent ends, however that ends. Linux only.

    The parent's end is, to the system, that of the thread which started this process.

    Args:
        parent_pid: the parent; if it has ended already, this process exits at once.
        number: the signal.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, number)
        if os.getppid() != parent_pid:
            os._exit(1)  # it ended before the line above


def kill_data_workers() -> None:
    """Kill the daemonic child processes of this one, which is about to end. Main thread only.

    Python itself would send them SIGTERM, which data workers ignore, and then wait for them.
    """
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler would raise
    for child in multiprocessing.active_children():
        if child.daemon:
            child.kill()
