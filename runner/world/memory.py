"""Free memory of a device or the host, and how the host's allocator returns memory."""

import ctypes
import resource
from collections.abc import Iterator
from pathlib import Path

import torch

M_MMAP_THRESHOLD = -3  # glibc's malloc.h
LARGE = 1 << 20  # bytes; larger blocks are mapped separately. glibc raises this to up to 32 MiB as blocks are freed
STATUS = Path("/proc/self/status")
MEMINFO = Path("/proc/meminfo")
CGROUP = Path("/sys/fs/cgroup")


def free_bytes(device: torch.device) -> int:
    """Bytes that are free on the device; on the host, up to the lowest limit that is set. 0 = unknown."""
    if device.type == "cpu":
        return max(0, min(_free_on_host())) if MEMINFO.exists() else 0
    try:
        return torch.accelerator.get_memory_info(device)[0]
    except (RuntimeError, ValueError):  # not every backend reports it
        return 0


def return_large_blocks(device: torch.device) -> None:
    """Make the host's allocator return large blocks to the system when they are freed, from now on.

    glibc keeps freed blocks of up to 32 MiB, fragmented by small live ones: what fits in one step may then not fit in a
    later one. A step on the CPU becomes a little slower, since its pages are mapped again. Does nothing for other
    devices or other C libraries.
    """
    if device.type != "cpu":
        return
    try:
        set_option = ctypes.CDLL(None).mallopt
    except AttributeError:  # macOS, musl
        return
    set_option(M_MMAP_THRESHOLD, LARGE)


def _free_on_host() -> Iterator[int]:
    yield _kib(MEMINFO, "MemAvailable:") << 10
    for limit, used in ((resource.RLIMIT_AS, "VmSize:"), (resource.RLIMIT_DATA, "VmData:")):
        limit_bytes, _ = resource.getrlimit(limit)
        if limit_bytes != resource.RLIM_INFINITY:
            yield limit_bytes - (_kib(STATUS, used) << 10)
    group_limit, group_used = CGROUP / "memory.max", CGROUP / "memory.current"  # of a container's cgroup, version 2
    if group_limit.exists() and (limit_text := group_limit.read_text().strip()) != "max":
        yield int(limit_text) - int(group_used.read_text())


def _kib(path: Path, name: str) -> int:
    return int(path.read_text().split(name)[1].split()[0])
