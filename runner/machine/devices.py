"""The CPU and the accelerators of this machine."""

import os
import platform
import subprocess
from pathlib import Path
from typing import Any

from runner.hardware.shared import num_cores

__all__ = ["accelerators", "ask_driver", "cpu"]

CPUINFO, MEMINFO = Path("/proc/cpuinfo"), Path("/proc/meminfo")
ANSWER_S = 5.0
"""How long nvidia-smi may take."""
GIB = 1 << 30


def cpu() -> dict[str, Any]:
    """The CPU's model, its cores, and the memory."""
    import torch

    return {
        "model": _field(CPUINFO, "model name") or platform.processor() or platform.machine(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "usable_cores": num_cores(),
        "torch_threads": torch.get_num_threads(),
        "memory_gib": _gib("MemTotal") or _total_memory_gib(),
        "free_memory_gib": _gib("MemAvailable"),
    }


def accelerators() -> list[dict[str, Any]]:
    """Every CUDA or ROCm device, or Apple's Metal device."""
    import torch

    if torch.cuda.is_available():
        driver = ask_driver("--query-gpu=driver_version", "--format=csv,noheader").partition("\n")[0] or None
        return [{**_cuda_device(index), "driver": driver} for index in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        return [{"kind": "mps", "name": platform.machine(), "memory_gib": _total_memory_gib()}]
    return []


def ask_driver(*arguments: str) -> str:
    """What nvidia-smi prints; nothing where there is none, or it does not answer."""
    try:
        done = subprocess.run(["nvidia-smi", *arguments], capture_output=True, text=True, timeout=ANSWER_S, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


def _cuda_device(index: int) -> dict[str, Any]:
    import torch

    found = torch.cuda.get_device_properties(index)
    return {
        "kind": "cuda",
        "name": found.name,
        "memory_gib": round(found.total_memory / GIB, 1),
        "compute_capability": f"{found.major}.{found.minor}",
    }


def _field(file: Path, name: str) -> str | None:
    lines = file.read_text().splitlines() if file.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.partition(":")[0].strip() == name), None)


def _gib(name: str) -> float | None:
    kib = _field(MEMINFO, name)
    return None if kib is None else round(int(kib.split()[0]) * 1024 / GIB, 1)


def _total_memory_gib() -> float:
    return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB, 1)
