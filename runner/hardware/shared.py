"""Checks and thread settings that all hardware options share."""

import os
from collections.abc import Iterator

from runner.config.counted import counted
from runner.errors import Fault

TIMEOUT_S = 1800.0
"""The default of hardware.timeout_s: torch's own default for gloo."""
LONGEST_S = 1e8
"""Three years: torch counts milliseconds in 64 bits, and some backends in 32 of seconds."""


def check_processes(processes: int, threads: int | None, timeout_s: float) -> None:
    """Validate the fields that all hardware parts share.

    Raises:
        ValueError: a value is below 1.
    """
    if not 1 <= timeout_s <= LONGEST_S:
        raise ValueError(f"timeout_s={timeout_s} must be from 1 to {LONGEST_S:g}: seconds without any progress.")
    if processes < 1:
        raise ValueError(f"processes={processes} must be at least 1.")
    if threads is not None and threads < 1:
        raise ValueError(f"threads={threads} must be at least 1, or null for an even share of the cores.")


def too_many(processes: int, available: int, what: str, way_out: str) -> Iterator[Fault]:
    """Yield a fault if there are more processes than devices."""
    if processes > available:
        rule = f"{counted(processes, 'process', 'processes')}, but this machine has {available} {what}. {way_out}"
        yield Fault(key="hardware.processes", message=rule)


def use_threads(threads: int | None, processes: int) -> None:
    """Set torch's thread count to `threads` or to an even share of the cores; one process keeps torch's default."""
    if threads is None and processes == 1:
        return
    import torch

    torch.set_num_threads(threads or max(1, num_cores() // processes))


def num_cores() -> int:
    """Return the number of cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if os.name == "posix" and os.uname().sysname == "Linux" else os.cpu_count() or 1
