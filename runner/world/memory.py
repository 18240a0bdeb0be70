"""How much memory a process may still take, and how the host's allocator gives back what it took."""

import ctypes
import resource
from collections.abc import Iterator
from pathlib import Path

import torch

M_MMAP_THRESHOLD = -3  # glibc's malloc.h
LARGE = 1 << 20  # bytes from which on a block is mapped by itself; glibc lets this grow to 32 MiB as blocks are freed
STATUS = Path("/proc/self/status")
MEMINFO = Path("/proc/meminfo")
GROUP = Path("/sys/fs/cgroup")


def free_bytes(device: torch.device) -> int:
    """What is left on the device; on the host, up to the nearest limit that is set. 0 = not known."""
    if device.type == "cpu":
        return max(0, min(_left_on_host())) if MEMINFO.exists() else 0
    try:
        return torch.accelerator.get_memory_info(device)[0]
    except (RuntimeError, ValueError):  # not every backend counts
        return 0


def return_large_blocks(device: torch.device) -> None:
    """Let the host's allocator give each large block back when it is freed, from now on.

    glibc keeps blocks of up to 32 MiB for later, between small ones that live on: what fitted in one step then does not
    in a later one. A step on the host becomes a little slower, since its pages are mapped anew. Other devices and other
    C libraries are left as they are.
    """
    if device.type != "cpu":
        return
    try:
        set_option = ctypes.CDLL(None).mallopt
    except AttributeError:  # macOS, musl
        return
    set_option(M_MMAP_THRESHOLD, LARGE)


def _left_on_host() -> Iterator[int]:
    yield _kib(MEMINFO, "MemAvailable:") << 10
    for limit, taken in ((resource.RLIMIT_AS, "VmSize:"), (resource.RLIMIT_DATA, "VmData:")):
        allowed, _ = resource.getrlimit(limit)
        if allowed != resource.RLIM_INFINITY:
            yield allowed - (_kib(STATUS, taken) << 10)
    allowed_here, taken_here = GROUP / "memory.max", GROUP / "memory.current"  # of a container's own cgroup, version 2
    if allowed_here.exists() and (allowed_text := allowed_here.read_text().strip()) != "max":
        yield int(allowed_text) - int(taken_here.read_text())


def _kib(path: Path, name: str) -> int:
    return int(path.read_text().split(name)[1].split()[0])
