"""Decides whether this process may be forked; nothing else does."""

import sys
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from runner.protocols import Hardware

__all__ = ["can_fork", "can_fork_ranks"]


def can_fork() -> bool:
    """Whether a fork of this process is safe: on Linux, with no thread but this one, and without a CUDA context.

    Python cannot see the threads of a C++ library: a process that has opened a torch TCPStore must not fork, whatever
    this function says. Does not import torch; a process that has not imported it holds no device.
    """
    return sys.platform == "linux" and threading.active_count() == 1 and not _has_cuda_context()


def can_fork_ranks(hardware: "Hardware") -> bool:
    """Whether forks of this process may use the devices of this hardware as well."""
    return hardware.can_fork and can_fork()


def _has_cuda_context() -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and bool(torch.cuda.is_initialized())
