"""CUDA (and ROCm) devices of this machine, one process each."""

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
class CUDA:
    """Train on CUDA devices; ranks talk over NCCL."""

    processes: int = 1
    """Ranks on this machine, one device each."""
    threads: int | None = None
    """Host threads of each rank; null = torch's choice for one rank, an even share of the cores for several."""
    tf32: bool = False
    """Let float32 matrix products round their inputs to TF32: faster, about three decimal digits."""

    def __post_init__(self) -> None:
        check_processes(self.processes, self.threads)

    def check(self, spec: "RunSpec") -> Iterable[Fault]:
        """As many devices as processes."""
        way_out = "Ask for fewer, or use hardware=cpu."
        yield from too_many(self.processes, self.count(), "CUDA devices", way_out)

    @property
    def backend(self) -> str:
        """nccl."""
        return "nccl"

    @property
    def can_fork(self) -> bool:
        """No: counting devices may have initialised the driver, which does not survive a fork."""
        return False

    @property
    def pins_memory(self) -> bool:
        """Yes."""
        return True

    def count(self) -> int:
        """Visible devices."""
        return torch.cuda.device_count()

    def claim(self, local_rank: int) -> torch.device:
        """Take the device of this rank."""
        use_threads(self.threads, self.processes)
        torch.backends.cuda.matmul.allow_tf32 = self.tf32
        torch.backends.cudnn.allow_tf32 = self.tf32
        torch.cuda.set_device(local_rank)
        return torch.device("cuda", local_rank)

    def has_dtype(self, dtype: torch.dtype) -> bool:
        """bfloat16 from compute capability 8.0 (Ampere) on, float8 from 8.9 (Ada, Hopper) on."""
        if dtype.is_floating_point and dtype.itemsize == 1:
            return torch.cuda.get_device_capability() >= (8, 9)
        return dtype is not torch.bfloat16 or torch.cuda.is_bf16_supported(including_emulation=False)
