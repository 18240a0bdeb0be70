"""Hardware parts: what they refuse, and how they share cores."""

from typing import Any

import pytest
import torch

from runner.hardware.auto import Auto
from runner.hardware.cpu import CPU
from runner.hardware.cuda import CUDA
from runner.hardware.mps import MPS
from runner.hardware.shared import num_cores


def test_more_processes_than_cores_is_a_fault_unless_it_is_meant() -> None:
    processes = num_cores() + 1
    (fault,) = CPU(processes=processes).check(None)
    assert fault.key == "hardware.processes"
    assert fault.message.startswith(f"{processes} processes, but this machine has {num_cores()} cores.")
    assert "hardware.oversubscribe=true" in fault.message
    assert list(CPU(processes=processes, oversubscribe=True).check(None)) == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA devices")
def test_hardware_that_is_absent_is_a_fault() -> None:
    (fault,) = CUDA().check(None)
    assert fault.message.startswith("1 process, but this machine has 0 CUDA devices.")
    assert "hardware=cpu" in fault.message


@pytest.mark.skipif(torch.backends.mps.is_available(), reason="needs a machine without Metal")
def test_metal_that_is_absent_is_a_fault() -> None:
    (fault,) = MPS().check(None)
    assert fault.message.startswith("1 process, but this machine has 0 Metal devices.")


@pytest.mark.parametrize("kind", [Auto, CPU, CUDA, MPS])
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"processes": 0}, "processes=0 must be at least 1"),
        ({"timeout_s": 0.0}, r"timeout_s=0.0 must be from 1 to 1e\+08: seconds without any progress"),
        ({"timeout_s": float("inf")}, "timeout_s=inf must be from 1 to"),
        ({"threads": 0}, "threads=0 must be at least 1, or null for an even share of the cores"),
    ],
)
def test_a_number_out_of_range_is_refused(kind: Any, fields: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kind(**fields)


@pytest.mark.skipif(torch.cuda.is_available() or torch.backends.mps.is_available(), reason="needs a bare machine")
def test_auto_is_the_host_where_there_is_nothing_else() -> None:
    auto = Auto(processes=2)
    assert auto.found == CPU(processes=2)
    assert (auto.backend, auto.can_fork, auto.pins_memory, auto.count()) == ("gloo", True, False, num_cores())
    assert auto.has_dtype(torch.bfloat16)
    cuda = CUDA()
    assert (cuda.count(), cuda.has_dtype(torch.bfloat16), cuda.has_dtype(torch.float8_e4m3fn)) == (0, False, False)
