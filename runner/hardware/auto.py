"""Whatever this machine has: CUDA devices before Metal before the host's cores."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, final

import torch

from runner.errors import Fault
from runner.hardware.cpu import CPU
from runner.hardware.cuda import CUDA
from runner.hardware.mps import MPS
from runner.hardware.shared import check_processes

if TYPE_CHECKING:
    from runner.config.run_spec import RunSpec


@final
@dataclass(frozen=True, kw_only=True)
class Auto:
    """Pick the best kind of device that is there, with its defaults."""

    processes: int = 1
    """Ranks on this machine."""
    threads: int | None = None
    """Host threads of each rank; null = torch's choice for one rank, an even share of the cores for several."""

    def __post_init__(self) -> None:
        check_processes(self.processes, self.threads)

    @property
    def found(self) -> CPU | CUDA | MPS:
        """The kind of hardware that everything is handed on to."""
        kind = CUDA if torch.cuda.is_available() else MPS if torch.backends.mps.is_available() else CPU
        return kind(processes=self.processes, threads=self.threads)

    def check(self, spec: "RunSpec") -> Iterable[Fault]:
        """As the kind found."""
        return self.found.check(spec)

    @property
    def backend(self) -> str:
        """As the kind found."""
        return self.found.backend

    @property
    def can_fork(self) -> bool:
        """As the kind found."""
        return self.found.can_fork

    @property
    def pins_memory(self) -> bool:
        """As the kind found."""
        return self.found.pins_memory

    def count(self) -> int:
        """As the kind found."""
        return self.found.count()

    def claim(self, local_rank: int) -> torch.device:
        """As the kind found."""
        return self.found.claim(local_rank)

    def has_dtype(self, dtype: torch.dtype) -> bool:
        """As the kind found."""
        return self.found.has_dtype(dtype)
