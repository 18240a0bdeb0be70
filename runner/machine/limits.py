"""What the system allows a run: limits of the account and of the container, and the disk."""

import resource
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from runner.machine.devices import GIB

__all__ = ["container", "disk_free_gib", "process_limits"]

LIMITS: Mapping[str, tuple[int, int]] = {
    "open_files": (resource.RLIMIT_NOFILE, 1),
    "processes": (resource.RLIMIT_NPROC, 1),
    "locked_memory_kib": (resource.RLIMIT_MEMLOCK, 1024),
    "address_space_kib": (resource.RLIMIT_AS, 1024),
}
"""Each with the unit that it is shown in."""
CGROUP = Path("/sys/fs/cgroup")
NO_LIMIT = 1 << 60
"""Version 1 writes a number near 2^63 where there is no limit."""


def process_limits() -> dict[str, str]:
    """The soft limits, as `ulimit` shows them; `of` = what they may be raised to, where that differs."""
    return {name: _limit(*one) for name, one in LIMITS.items()}


def container(cgroup: Path = CGROUP) -> dict[str, Any]:
    """The limits of this process's control group, of version 1 or 2; None = none is set."""
    return {"memory_gib": _memory_gib(cgroup), "cpus": _cpus(cgroup)}


def disk_free_gib(directory: Path) -> float:
    """Free space where the runs of a working directory go."""
    outputs = directory / "outputs"
    return round(shutil.disk_usage(outputs if outputs.is_dir() else directory).free / GIB, 1)


def _limit(number: int, unit: int) -> str:
    soft, hard = (_shown(value, unit) for value in resource.getrlimit(number))
    return soft if soft == hard else f"{soft} of {hard}"


def _shown(value: int, unit: int) -> str:
    return "unlimited" if value == resource.RLIM_INFINITY else str(value // unit)


def _memory_gib(cgroup: Path) -> float | None:
    for file in (cgroup / "memory.max", cgroup / "memory" / "memory.limit_in_bytes"):
        text = file.read_text().strip() if file.exists() else "max"
        if text != "max" and int(text) < NO_LIMIT:
            return round(int(text) / GIB, 2)
    return None


def _cpus(cgroup: Path) -> float | None:
    both, single = cgroup / "cpu.max", cgroup / "cpu" / "cpu.cfs_quota_us"
    quota, period = "max", "1"
    if both.exists():
        quota, period = both.read_text().split()[:2]
    elif single.exists():
        quota, period = single.read_text().strip(), single.with_name("cpu.cfs_period_us").read_text().strip()
    return None if quota in ("max", "-1") else round(int(quota) / int(period), 2)
