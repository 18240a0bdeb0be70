"""After which steps replicas exchange which of their weights."""

from dataclasses import dataclass
from typing import final


@final
@dataclass(frozen=True, kw_only=True)
class Exchanges:
    """The keys of every option whose replicas take steps of their own."""

    every_steps: int
    """Optimizer steps from one exchange to the next."""
    warmup_steps: int = 0
    """First steps in which gradients are summed over all replicas, as under DDP."""
    fragments: int = 1
    """Parts of the weights that are exchanged at different steps, evenly spaced, each every `every_steps`."""

    def __post_init__(self) -> None:
        if self.every_steps < 1:
            raise ValueError(f"every_steps={self.every_steps} must be at least 1.")
        if self.warmup_steps < 0:
            raise ValueError(f"warmup_steps={self.warmup_steps} must not be negative.")
        if not 1 <= self.fragments <= self.every_steps:
            rule = f"from 1 to every_steps={self.every_steps}: one is exchanged after a step."
            raise ValueError(f"fragments={self.fragments} must be {rule}")

    def fragment_after(self, step: int) -> int | None:
        """The fragment that is exchanged after this step; None = nothing is.

        Counted from the end of the warm-up; the last fragment's turn is at multiples of `every_steps`.
        """
        since = step - self.warmup_steps
        if since <= 0:
            return None
        at = since % self.every_steps or self.every_steps
        turns = [self.every_steps * (number + 1) // self.fragments for number in range(self.fragments)]
        return turns.index(at) if at in turns else None
