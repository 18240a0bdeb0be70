"""A new order in each epoch that reads neighbouring items close to each other."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

from runner.errors import Fault
from runner.protocols import Order

if TYPE_CHECKING:
    from runner.config.run_spec import RunSpec


@final
@dataclass(frozen=True, kw_only=True)
class Shards:
    """Windows of neighbouring items in a new order in each epoch, and the items of each window in a new order."""

    window: int = 4096
    """Neighbouring items that are mixed with each other, such as those of one file."""

    def __post_init__(self) -> None:
        if self.window < 1:
            raise ValueError(f"window={self.window} must be at least 1.")

    def check(self, spec: "RunSpec") -> Iterable[Fault]:
        """No faults: every map-style dataset has such an order."""
        return ()

    def build(self, dataset: Any, *, seed: int) -> Order:
        """An order of windows, and of the items in each, for each epoch."""
        from runner.data.order import ShuffledWindows

        return ShuffledWindows(len(dataset), window=self.window, seed=seed)
