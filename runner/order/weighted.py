"""Items as often, or as early, as their weights say."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

from runner.errors import DataError, Fault
from runner.protocols import Order

if TYPE_CHECKING:
    from runner.config.run_spec import RunSpec
    from runner.data.order import Weights


@final
@dataclass(frozen=True, kw_only=True)
class Weighted:
    """Draws the items of each epoch by their weights, which the dataset gives."""

    weights: str = "weights"
    """The dataset's attribute that holds one number for each item, not negative."""
    replacement: bool = True
    """Draw each item independently, so that one may come several times an epoch; false = each once at most."""
    items: int | None = None
    """Items of one epoch; null = as many as the dataset has, or, each once, as many as have a weight above 0."""

    def __post_init__(self) -> None:
        if self.items is not None and self.items < 1:
            raise ValueError(f"items={self.items} must be at least 1, or null.")

    def check(self, spec: "RunSpec") -> Iterable[Fault]:
        """No faults: what the dataset gives is checked once it is there."""
        return ()

    def build(self, dataset: Any, *, seed: int) -> Order:
        """Draws for each epoch.

        Raises:
            DataError: the dataset has no such weights, or fewer of them than an epoch needs.
        """
        from runner.data.order import Drawn, WithoutReplacement

        weights = self._weights_of(dataset)
        if self.replacement:
            return Drawn(weights, num_items=len(weights) if self.items is None else self.items, seed=seed)
        available = int((weights > 0).sum())
        if self.items is not None and self.items > available:
            rule = f"only {available} have a weight above 0. Use at most as many, or order.replacement=true."
            raise DataError(f"order.items={self.items} items cannot be drawn once each: {rule}")
        return WithoutReplacement(weights, num_items=self.items or available, seed=seed)

    def _weights_of(self, dataset: Any) -> "Weights":
        import numpy

        kind = f"the dataset ({type(dataset).__name__})"
        if not hasattr(dataset, self.weights):
            rule = f"{kind} has no attribute {self.weights!r}: one number for each item. Name another: order.weights=…"
            raise DataError(f"order=weighted needs weights, but {rule}")
        try:
            weights = numpy.asarray(getattr(dataset, self.weights), dtype=numpy.float64)
        except (TypeError, ValueError):
            raise DataError(f"the attribute {self.weights!r} of {kind} must hold numbers, one for each item.") from None
        if weights.shape != (len(dataset),):
            shape = list(weights.shape)
            raise DataError(f"{kind} has {len(dataset)} items, but its {self.weights!r} have the shape {shape}.")
        if not (numpy.isfinite(weights).all() and (weights >= 0).all() and weights.any()):
            rule = "finite numbers, none below 0 and one above 0 at least."
            raise DataError(f"the {self.weights!r} of {kind} must be {rule}")
        return weights
