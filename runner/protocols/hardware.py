"""The group `hardware`: the devices that ranks compute on."""

from typing import TYPE_CHECKING, Protocol

from runner.protocols.part import Part

if TYPE_CHECKING:
    import torch


class Hardware(Part, Protocol):
    """The devices of one machine."""

    processes: int
    """The number of ranks on each machine."""
    timeout_s: float
    """Seconds that a rank of several may make no progress in a step or its data, or wait for the others."""

    @property
    def backend(self) -> str:
        """The torch.distributed backend for this hardware: gloo, nccl, …"""
        ...

    @property
    def can_fork(self) -> bool:
        """Whether ranks may be forked from a process that has imported torch."""
        ...

    @property
    def pins_memory(self) -> bool:
        """Whether batches are put in page-locked memory, which allows asynchronous copies to the device."""
        ...

    def count(self) -> int:
        """The number of ranks that this machine can run, one per device."""
        ...

    def claim(self, local_rank: int) -> "torch.device":
        """Select this process's device and its part of the CPU cores. Called once, before any tensor is created."""
        ...

    def has_dtype(self, dtype: "torch.dtype") -> bool:
        """Whether the device supports this dtype."""
        ...
