"""The host's own cores, one process each or sharing them."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, final

import torch

from runner.errors import Fault
from runner.hardware.shared import check_processes, num_cores, too_many, use_threads

if TYPE_CHECKING:
    from runner.config.run_spec import RunSpec


@final
@dataclass(frozen=True, kw_only=True)
class CPU:
    """Train on the host's cores; ranks talk over gloo."""

    processes: int = 1
    """Ranks on this machine."""
    threads: int | None = None
    """Threads of each rank; null = torch's choice for one rank, an even share of the cores for several."""
    oversubscribe: bool = False
    """Allow more processes than cores."""

    def __post_init__(self) -> None:
        check_processes(self.processes, self.threads)

    def check(self, spec: "RunSpec") -> Iterable[Fault]:
        """No more processes than cores, unless said so."""
        if not self.oversubscribe:
            way_out = "Ask for fewer, or set hardware.oversubscribe=true."
            yield from too_many(self.processes, self.count(), "cores", way_out)

    @property
    def backend(self) -> str:
        """gloo."""
        return "gloo"

    @property
    def can_fork(self) -> bool:
        """Nothing on the host forbids it."""
        return True

    @property
    def pins_memory(self) -> bool:
        """No: the batch is where it is used."""
        return False

    def count(self) -> int:
        """One rank a core."""
        return num_cores()

    def claim(self, local_rank: int) -> torch.device:
        """Take a share of the cores."""
        use_threads(self.threads, self.processes)
        return torch.device("cpu")

    def has_dtype(self, dtype: torch.dtype) -> bool:
        """The host computes in every type, slowly in the narrow ones; it only stores those of eight bits."""
        return not dtype.is_floating_point or dtype.itemsize > 1
