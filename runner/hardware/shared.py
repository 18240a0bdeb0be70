"""What every kind of hardware checks alike."""

import os
from collections.abc import Iterator

import torch

from runner.errors import Fault


def check_processes(processes: int, threads: int | None) -> None:
    """Own-field rules of a hardware part.

    Raises:
        ValueError: a number below one.
    """
    if processes < 1:
        raise ValueError(f"processes={processes} must be at least 1.")
    if threads is not None and threads < 1:
        raise ValueError(f"threads={threads} must be at least 1, or null for an even share of the cores.")


def too_many(processes: int, available: int, what: str, way_out: str) -> Iterator[Fault]:
    """A fault if more ranks are asked for than there are places."""
    if processes > available:
        rule = f"{processes} processes were asked for, but this machine has {available} {what}. {way_out}"
        yield Fault(key="hardware.processes", message=rule)


def use_threads(threads: int | None, processes: int) -> None:
    """Give this process its share of the cores; a single one keeps torch's own choice unless told otherwise."""
    if threads is None and processes == 1:
        return
    torch.set_num_threads(threads or max(1, num_cores() // processes))


def num_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if os.name == "posix" and os.uname().sysname == "Linux" else os.cpu_count() or 1
