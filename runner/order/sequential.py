"""The dataset's own order."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

from runner.errors import Fault
from runner.protocols import Order

if TYPE_CHECKING:
    from runner.config.run_spec import RunSpec


@final
@dataclass(frozen=True, kw_only=True)
class Sequential:
    """The dataset's own order, in every epoch."""

    def check(self, spec: "RunSpec") -> Iterable[Fault]:
        """No faults: every map-style dataset has such an order."""
        return ()

    def build(self, dataset: Any, *, seed: int) -> Order:
        """The same order for every epoch."""
        from runner.data.order import Sequential

        return Sequential(len(dataset))
