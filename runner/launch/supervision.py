"""How the launcher supervises its ranks: the keys that the options of `launch` share."""

from dataclasses import dataclass
from typing import final


@final
@dataclass(frozen=True, kw_only=True)
class Supervision:
    """Restarts and timeouts; each option of `launch` has these as keys of its own."""

    max_restarts: int = 0
    """How often all ranks are started again after one failed; they continue from the last checkpoint."""
    grace_s: float = 30.0
    """Seconds from SIGTERM to SIGKILL: the time to reach the end of a step and save a checkpoint."""
    interrupt_s: float = 4.0
    """The same after Ctrl-C, where a person waits."""
    monitor_interval_s: float = 0.1
    """Seconds between two checks of the ranks."""

    def __post_init__(self) -> None:
        if self.max_restarts < 0:
            raise ValueError(f"max_restarts={self.max_restarts} must be at least 0; 0 = a failure ends the run.")
        for name, seconds in (("grace_s", self.grace_s), ("interrupt_s", self.interrupt_s)):
            if seconds < 0:
                raise ValueError(f"{name}={seconds} must be at least 0; 0 = kill the ranks at once.")
        if self.monitor_interval_s <= 0:
            raise ValueError(f"monitor_interval_s={self.monitor_interval_s} must be above 0, 0.1 for example.")
