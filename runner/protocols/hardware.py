"""The group `hardware`."""

from typing import TYPE_CHECKING, Protocol

from runner.protocols.part import Part

if TYPE_CHECKING:
    import torch


class Hardware(Part, Protocol):
    """The devices of one machine."""

    processes: int
    """How many ranks this machine runs."""

    @property
    def backend(self) -> str:
        """What torch.distributed calls the collectives of this hardware: gloo, nccl, …"""
        ...

    @property
    def can_fork(self) -> bool:
        """Whether ranks may be forked from a process that has imported torch."""
        ...

    @property
    def pins_memory(self) -> bool:
        """Whether batches are read into page-locked memory, from which the device copies without waiting."""
        ...

    def count(self) -> int:
        """How many ranks this machine can hold, one device each."""
        ...

    def claim(self, local_rank: int) -> "torch.device":
        """Make this process use its device and its share of the cores. Called once, before any tensor is made."""
        ...

    def has_dtype(self, dtype: "torch.dtype") -> bool:
        """Whether it computes in this type."""
        ...
