"""The CPU cores of this machine, divided among its ranks."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, final

from runner.errors import Fault
from runner.hardware.shared import TIMEOUT_S, check_processes, num_cores, too_many, use_threads

if TYPE_CHECKING:
    import torch

    from runner.config.run_spec import RunSpec


@final
@dataclass(frozen=True, kw_only=True)
class CPU:
    """Train on the CPU; ranks communicate over Gloo."""

    processes: int = 1
    """Number of ranks on this machine."""
    threads: int | None = None
    """CPU threads per rank; null = torch's default for one rank, an even share of the cores for several."""
    timeout_s: float = TIMEOUT_S
    """Seconds that a rank of several may make no progress, after which the run ends and names it."""
    oversubscribe: bool = False
    """Allow more processes than cores."""

    def __post_init__(self) -> None:
        check_processes(self.processes, self.threads, self.timeout_s)

    def check(self, spec: "RunSpec") -> Iterable[Fault]:
        """Requires at most one process per core unless `oversubscribe` is set."""
        if not self.oversubscribe:
            way_out = "Use fewer, or set hardware.oversubscribe=true."
            yield from too_many(self.processes, self.count(), "cores", way_out)

    @property
    def backend(self) -> str:
        """Gloo, which runs on every machine."""
        return "gloo"

    @property
    def can_fork(self) -> bool:
        """True: there is no device driver that would not survive a fork."""
        return True

    @property
    def pins_memory(self) -> bool:
        """False: batches are not copied to another device."""
        return False

    def count(self) -> int:
        """Returns the number of cores: one rank per core."""
        return num_cores()

    def claim(self, local_rank: int) -> "torch.device":
        """Limits this process to its share of the cores."""
        import torch

        use_threads(self.threads, self.processes)
        return torch.device("cpu")

    def has_dtype(self, dtype: "torch.dtype") -> bool:
        """True for all but the 8-bit floating-point dtypes, which the CPU only stores; 16-bit ones are slow."""
        return not dtype.is_floating_point or dtype.itemsize > 1
