"""The Metal GPU of an Apple machine."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, final

from runner.errors import Fault
from runner.hardware.shared import TIMEOUT_S, check_processes, too_many, use_threads

if TYPE_CHECKING:
    import torch

    from runner.config.run_spec import RunSpec


@final
@dataclass(frozen=True, kw_only=True)
class MPS:
    """Train on Apple's Metal GPU with a single process."""

    processes: int = 1
    """Number of ranks on this machine; always 1."""
    threads: int | None = None
    """CPU threads; null = torch's default."""
    timeout_s: float = TIMEOUT_S
    """Seconds that a rank of several may make no progress, after which the run ends and names it."""

    def __post_init__(self) -> None:
        check_processes(self.processes, self.threads, self.timeout_s)

    def check(self, spec: "RunSpec") -> Iterable[Fault]:
        """Requires a Metal device and a single process."""
        way_out = "Metal runs a single process: use hardware.processes=1, or hardware=cpu."
        yield from too_many(self.processes, self.count(), "Metal devices", way_out)

    @property
    def backend(self) -> str:
        """Gloo, which a single process never uses."""
        return "gloo"

    @property
    def can_fork(self) -> bool:
        """False: Metal does not survive a fork."""
        return False

    @property
    def pins_memory(self) -> bool:
        """False: CPU and GPU share their memory."""
        return False

    def count(self) -> int:
        """Returns 1 if Metal is available, else 0."""
        import torch

        return int(torch.backends.mps.is_available())

    def claim(self, local_rank: int) -> "torch.device":
        """Selects the Metal device."""
        import torch

        use_threads(self.threads, self.processes)
        return torch.device("mps")

    def has_dtype(self, dtype: "torch.dtype") -> bool:
        """Metal has no float64 and no float8; bfloat16 needs macOS 14."""
        import torch

        if dtype is torch.bfloat16:
            return torch.backends.mps.is_macos_or_newer(14, 0)
        return dtype is not torch.float64 and (not dtype.is_floating_point or dtype.itemsize > 1)
