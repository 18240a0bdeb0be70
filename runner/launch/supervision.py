"""How long and how often the launcher of several ranks is patient: the keys that its options share."""

from dataclasses import dataclass
from typing import final


@final
@dataclass(frozen=True, kw_only=True)
class Supervision:
    """Times and restarts; each option of `launch` has these as keys of its own."""

    max_restarts: int
    grace_s: float
    interrupt_s: float
    monitor_interval_s: float

    def __post_init__(self) -> None:
        if self.max_restarts < 0:
            raise ValueError(f"max_restarts={self.max_restarts} must be at least 0; 0 = a failure ends the run.")
        for name, seconds in (("grace_s", self.grace_s), ("interrupt_s", self.interrupt_s)):
            if seconds < 0:
                raise ValueError(f"{name}={seconds} must be at least 0; 0 = kill the ranks at once.")
        if self.monitor_interval_s <= 0:
            raise ValueError(f"monitor_interval_s={self.monitor_interval_s} must be above 0, 0.1 for example.")
