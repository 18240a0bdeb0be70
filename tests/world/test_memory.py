"""What is left of the host's memory, and whether freed blocks go back to it."""

import resource
from pathlib import Path
from typing import Any

import torch
from torch.multiprocessing.spawn import spawn

from runner.world.memory import free_bytes, keep_freed_blocks, return_large_blocks

CPU = torch.device("cpu")
MIB = 1 << 20


def data_bytes() -> Any:
    return int(Path("/proc/self/status").read_text().split("VmData:")[1].split()[0]) << 10


def limited(rank: Any) -> None:
    assert free_bytes(CPU) > 0
    limit = data_bytes() + 100 * MIB
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    assert 90 * MIB < free_bytes(CPU) <= 100 * MIB


def returning(rank: Any) -> None:
    return_large_blocks(CPU)
    before, kept = data_bytes(), []
    for _ in range(20):
        large = torch.empty(16 * MIB, dtype=torch.uint8)
        kept.append(large[:1].clone())  # a small block behind each large one
        del large
    assert data_bytes() - before < 16 * MIB


def step() -> None:
    torch.stack([torch.ones(1 << 17) for _ in range(8)])  # 8 blocks of 512 KiB, and one of 4 MiB


def keeping(rank: Any) -> None:
    keep_freed_blocks()
    step()  # the code that it runs is mapped, too
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        step()
    pages = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    assert pages < 2048, f"{pages} of 10 × 8 MiB, which are 20,480"


def test_a_limit_bounds_what_is_left() -> None:
    spawn(limited)


def test_a_large_block_leaves_no_hole() -> None:
    spawn(returning)


def test_what_a_step_frees_serves_the_next() -> None:
    spawn(keeping)


def test_of_a_device_without_numbers_nothing_is_known() -> None:
    assert free_bytes(torch.device("meta")) == 0
    return_large_blocks(torch.device("meta"))
