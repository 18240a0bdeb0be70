"""A new order in each epoch, computed instead of stored."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

from runner.errors import Fault
from runner.protocols import Order

if TYPE_CHECKING:
    from runner.config.run_spec import RunSpec


@final
@dataclass(frozen=True, kw_only=True)
class Shuffled:
    """A new permutation of all items in each epoch. It takes no memory, and any part of it costs the same."""

    def check(self, spec: "RunSpec") -> Iterable[Fault]:
        """No faults: every map-style dataset has such an order."""
        return ()

    def build(self, dataset: Any, *, seed: int) -> Order:
        """A permutation for each epoch."""
        from runner.data.order import Shuffled

        return Shuffled(len(dataset), seed=seed)
