"""A new order in each epoch, drawn by torch.randperm and stored."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

from runner.errors import Fault
from runner.protocols import Order

if TYPE_CHECKING:
    from runner.config.run_spec import RunSpec


@final
@dataclass(frozen=True, kw_only=True)
class Randperm:
    """A new permutation of all items in each epoch, drawn by torch: 8 bytes for each item on each rank."""

    def check(self, spec: "RunSpec") -> Iterable[Fault]:
        """No faults: every map-style dataset has such an order."""
        return ()

    def build(self, dataset: Any, *, seed: int) -> Order:
        """A permutation for each epoch."""
        from runner.data.order import StoredPermutation

        return StoredPermutation(len(dataset), seed=seed)
