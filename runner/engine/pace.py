"""How far something is, how fast it goes, and when it will be done."""

import time
from collections.abc import Callable
from datetime import timedelta
from typing import final

__all__ = ["Pace", "format_count"]


@final
class Pace:
    """Of so many units, from where this attempt started."""

    def __init__(self, unit: str, *, total: int, start: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.unit = unit
        self.total = total
        self.start = start
        self.clock = clock
        self._began = clock()

    def position(self, done: int) -> str:
        """Format as `step 120/600`."""
        return f"{self.unit} {done}/{self.total}"

    def per_s(self, done: int) -> float:
        """The mean of this attempt."""
        return max(done - self.start, 1) / max(self.clock() - self._began, 1e-9)

    def eta(self, done: int) -> str:
        """Format as `eta 0:01:12`, from the mean of this attempt."""
        taken_s = self.clock() - self._began
        remaining_s = round(taken_s / max(done - self.start, 1) * (self.total - done))
        return f"eta {timedelta(seconds=remaining_s)}"


def format_count(number: float) -> str:
    """Three digits and a unit: 7.25, 412, 41.2k, 1.30M."""
    units = iter(("", "k", "M", "G", "T"))
    unit = next(units)
    while abs(number) >= 999.5 and unit != "T":
        number, unit = number / 1000, next(units)
    decimals = 2 if abs(number) < 9.995 else 1 if abs(number) < 99.95 else 0
    return f"{number:.{decimals}f}{unit}"
