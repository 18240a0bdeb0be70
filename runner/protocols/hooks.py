"""What a user's functions exchange with the engine."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

NO_METRICS: Mapping[str, tuple["Tensor", "Tensor | int"]] = {}


class Loss(NamedTuple):
    """What a loss hook returns for one micro-batch: a sum and what to divide it by.

    The gradient of an optimizer step is the gradient of the sum of all totals, divided once by the sum of all counts,
    over every micro-batch of every rank. A hook may return a plain scalar instead: the mean over its micro-batch.
    """

    total: "Tensor"
    """Scalar with a gradient: the loss summed over the micro-batch (over items, tokens, pixels …)."""
    count: "Tensor | int"  # type: ignore[assignment]  # tuple.count, which nobody calls
    """How many things `total` sums over. A tensor need not be on the host: the engine does not read it in the loop."""
    metrics: Mapping[str, tuple["Tensor", "Tensor | int"]] = NO_METRICS
    """Name to (sum, count), added up over micro-batches and ranks before they are divided."""


@dataclass(frozen=True, kw_only=True)
class Data:
    """What a data hook returns."""

    train: Any
    """Map-style dataset: `__len__` and `__getitem__(index)`; `__getitems__(indices)` is used where it exists. Or an
    object with `open_source(request)`, which makes the steps itself (`runner.protocols.data.OpensSource`)."""
    eval: Any = None
    """Map-style dataset to evaluate on, a mapping of names to such datasets, or None."""
    collate: Callable[[list[Any]], Any] | None = None
    """Items of one micro-batch to a batch; None is torch's default_collate."""
