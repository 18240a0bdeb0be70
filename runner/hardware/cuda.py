"""The CUDA (or ROCm) devices of this machine, one process per device."""

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
class CUDA:
    """Train on CUDA devices; ranks communicate over NCCL."""

    processes: int = 1
    """Number of ranks on this machine, one device each."""
    threads: int | None = None
    """CPU threads per rank; null = torch's default for one rank, an even share of the cores for several."""
    timeout_s: float = TIMEOUT_S
    """Seconds that a rank of several may make no progress, after which the run ends and names it."""
    tf32: bool = False
    """Allow TF32 in float32 matrix multiplications and convolutions: faster, with about three decimal digits."""

    def __post_init__(self) -> None:
        check_processes(self.processes, self.threads, self.timeout_s)

    def check(self, spec: "RunSpec") -> Iterable[Fault]:
        """Requires one visible device per process."""
        way_out = "Use fewer, or use hardware=cpu."
        yield from too_many(self.processes, self.count(), "CUDA devices", way_out)

    @property
    def backend(self) -> str:
        """NCCL, for CUDA and ROCm devices."""
        return "nccl"

    @property
    def can_fork(self) -> bool:
        """False: counting devices may have initialized the driver, which does not survive a fork."""
        return False

    @property
    def pins_memory(self) -> bool:
        """True: copies from page-locked memory to the device are asynchronous."""
        return True

    def count(self) -> int:
        """Returns the number of visible devices."""
        import torch

        return torch.cuda.device_count()

    def claim(self, local_rank: int) -> "torch.device":
        """Selects the device whose index is the local rank."""
        import torch

        use_threads(self.threads, self.processes)
        torch.backends.cuda.matmul.allow_tf32 = self.tf32
        torch.backends.cudnn.allow_tf32 = self.tf32
        torch.cuda.set_device(local_rank)
        return torch.device("cuda", local_rank)

    def has_dtype(self, dtype: "torch.dtype") -> bool:
        """bfloat16 needs compute capability 8.0 (Ampere), float8 needs 8.9 (Ada, Hopper)."""
        import torch

        if dtype.is_floating_point and dtype.itemsize == 1:
            return torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 9)
        return dtype is not torch.bfloat16 or torch.cuda.is_bf16_supported(including_emulation=False)
