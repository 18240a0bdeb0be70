"""Free memory of a device or the host, and how the host's allocator returns memory."""

import ctypes
import resource
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch

M_TRIM_THRESHOLD = -1  # glibc's malloc.h
M_MMAP_THRESHOLD = -3
LARGE = 1 << 20  # bytes; larger blocks are mapped separately. glibc raises this to up to 32 MiB as blocks are freed
LARGEST_KEPT = 1 << 25  # glibc allows no more
TRIMMED_FROM = 1 << 17  # bytes that are free at the end of the heap: what glibc begins with
KEPT = 1 << 30  # bytes that may be free there in a run
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


def keep_freed_blocks() -> None:
    """Make the host's allocator keep up to 1 GiB of freed blocks of up to 32 MiB each, from now on.

    A step frees as much as the next one allocates. By default glibc returns it to the system, or keeps it, depending on
    what else lies where in memory; whatever it returns the system must zero and map again.

    Does nothing for other C libraries.
    """
    _set_options({M_MMAP_THRESHOLD: LARGEST_KEPT, M_TRIM_THRESHOLD: KEPT})


def return_large_blocks(device: torch.device) -> None:
    """Make the host's allocator return large blocks to the system when they are freed, from now on.

    glibc keeps freed blocks of up to 32 MiB, fragmented by small live ones: what fits in one step may then not fit in a
    later one. A step on the CPU becomes a little slower, since its pages are mapped again. Does nothing for other
    devices or other C libraries.
    """
    if device.type == "cpu":
        _set_options({M_MMAP_THRESHOLD: LARGE, M_TRIM_THRESHOLD: TRIMMED_FROM})


def _set_options(options: Mapping[int, int]) -> None:
    try:
        set_option = ctypes.CDLL(None).mallopt
    except AttributeError:  # macOS, musl
        return
    for option, value in options.items():
        set_option(option, value)


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
