"""Environment variables of torch and of CUDA's libraries, set for a block of code and restored."""

import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

# cuBLAS is deterministic only with a workspace of a fixed size, and torch refuses to be deterministic without one. Of
# the two sizes that NVIDIA documents the first is the faster one: 24 MiB a device.
CUBLAS_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
FIXED_WORKSPACES = (":4096:8", ":16:8")

GLOO_INTERFACE, NCCL_INTERFACE = "GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"
LOOPBACK_INDEX = 1  # of the loopback interface: LOOPBACK_IFINDEX in Linux's net/flow.h; macOS has lo0 there too


def for_determinism(*, deterministic: bool) -> dict[str, str | None]:
    """What a deterministic run needs in the environment. A suitable value that the user has set is kept."""
    if not deterministic or os.environ.get(CUBLAS_WORKSPACE) in FIXED_WORKSPACES:
        return {}
    return {CUBLAS_WORKSPACE: FIXED_WORKSPACES[0]}


def for_one_machine() -> dict[str, str | None]:
    """What ranks of one machine need in the environment to communicate, and listen, on the loopback interface only.

    Gloo would listen at the address of this machine's name, NCCL on the first interface that is not loopback. A value
    that the user has set is kept.
    """
    loopback = socket.if_indextoname(LOOPBACK_INDEX)
    interfaces = {GLOO_INTERFACE: loopback, NCCL_INTERFACE: f"={loopback}"}  # without "=", NCCL takes it as a prefix
    return {name: interface for name, interface in interfaces.items() if name not in os.environ}


@contextmanager
def environment(changes: Mapping[str, str | None]) -> Iterator[None]:
    """Set these variables in the block (None = unset), and restore them afterwards."""
    before = {name: os.environ.get(name) for name in changes}
    _apply(changes)
    try:
        yield
    finally:
        _apply(before)


def _apply(changes: Mapping[str, str | None]) -> None:
    for name, value in changes.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
