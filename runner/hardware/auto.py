"""The best hardware that this machine has: CUDA devices, else Apple's Metal, else the CPU."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, final

from runner.errors import Fault
from runner.hardware.cpu import CPU
from runner.hardware.cuda import CUDA
from runner.hardware.mps import MPS
from runner.hardware.shared import TIMEOUT_S, check_processes

if TYPE_CHECKING:
    import torch

    from runner.config.run_spec import RunSpec


@final
@dataclass(frozen=True, kw_only=True)
class Auto:
    """Selects the best available device type and uses the defaults of that option."""

    processes: int = 1
    """Number of ranks on this machine."""
    threads: int | None = None
    """CPU threads per rank; null = torch's default for one rank, an even share of the cores for several."""
    timeout_s: float = TIMEOUT_S
    """Seconds that a rank of several may make no progress, after which the run ends and names it."""

    def __post_init__(self) -> None:
        check_processes(self.processes, self.threads, self.timeout_s)

    @property
    def found(self) -> CPU | CUDA | MPS:
        """The option selected on this machine."""
        import torch

        option = CUDA if torch.cuda.is_available() else MPS if torch.backends.mps.is_available() else CPU
        return option(processes=self.processes, threads=self.threads, timeout_s=self.timeout_s)

    def check(self, spec: "RunSpec") -> Iterable[Fault]:
        """Delegates to the hardware found."""
        return self.found.check(spec)

    @property
    def backend(self) -> str:
        """Delegates to the hardware found."""
        return self.found.backend

    @property
    def can_fork(self) -> bool:
        """Delegates to the hardware found."""
        return self.found.can_fork

    @property
    def pins_memory(self) -> bool:
        """Delegates to the hardware found."""
        return self.found.pins_memory

    def count(self) -> int:
        """Delegates to the hardware found."""
        return self.found.count()

    def claim(self, local_rank: int) -> "torch.device":
        """Delegates to the hardware found."""
        return self.found.claim(local_rank)

    def has_dtype(self, dtype: "torch.dtype") -> bool:
        """Delegates to the hardware found."""
        return self.found.has_dtype(dtype)
