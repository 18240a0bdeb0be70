"""The versions of what a run is made of."""

import platform
import sys
from collections.abc import Iterator
from importlib import metadata
from typing import Any

from runner import __version__
from runner.config.extras import declared

__all__ = ["libraries", "versions"]


def versions() -> dict[str, Any]:
    """The runner, Python, torch with its build, and the system. Names no host and no user."""
    import torch

    return {
        "runner": __version__,
        "python": f"{platform.python_version()} ({platform.python_implementation()})",
        "virtual_environment": sys.prefix != sys.base_prefix,
        "torch": torch.__version__,
        "torch_cuda": torch.version.cuda,
        "torch_hip": torch.version.hip,
        "torch_distributed": ", ".join(_backends()) or None,
        "system": platform.system(),
        "kernel": platform.release(),
        "architecture": platform.machine(),
        "libc": " ".join(platform.libc_ver()).strip() or None,
    }


def libraries() -> dict[str, str | None]:
    """Each library that the runner declares, those of its extras included, with its version; None = not installed."""
    found: dict[str, str | None] = {}
    for name in sorted({name for name, _ in declared()}):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def _backends() -> Iterator[str]:
    import torch.distributed as dist

    if dist.is_available():
        checks = {"gloo": dist.is_gloo_available, "nccl": dist.is_nccl_available, "mpi": dist.is_mpi_available}
        yield from (name for name, is_there in checks.items() if is_there())
