"""The GPU of an Apple machine."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, final

import torch

from runner.errors import Fault
from runner.hardware.shared import check_processes, too_many, use_threads

if TYPE_CHECKING:
    from runner.config.run_spec import RunSpec


@final
@dataclass(frozen=True, kw_only=True)
class MPS:
    """Train on Apple's Metal device; there is one, for one process."""

    processes: int = 1
    """Ranks on this machine: 1."""
    threads: int | None = None
    """Host threads; null = torch's choice."""

    def __post_init__(self) -> None:
        check_processes(self.processes, self.threads)

    def check(self, spec: "RunSpec") -> Iterable[Fault]:
        """One process on the one device."""
        way_out = "Metal runs one process; use hardware.processes=1, or hardware=cpu."
        yield from too_many(self.processes, self.count(), "Metal devices", way_out)

    @property
    def backend(self) -> str:
        """gloo; never used by one process."""
        return "gloo"

    @property
    def can_fork(self) -> bool:
        """No: Metal does not survive a fork."""
        return False

    @property
    def pins_memory(self) -> bool:
        """No: host and device share their memory."""
        return False

    def count(self) -> int:
        """One where Metal is there."""
        return int(torch.backends.mps.is_available())

    def claim(self, local_rank: int) -> torch.device:
        """Take the device."""
        use_threads(self.threads, self.processes)
        return torch.device("mps")

    def has_dtype(self, dtype: torch.dtype) -> bool:
        """Metal has no float64; bfloat16 from macOS 14 on."""
        if dtype is torch.bfloat16:
            return torch.backends.mps.is_macos_or_newer(14, 0)
        return dtype is not torch.float64 and (not dtype.is_floating_point or dtype.itemsize > 1)
