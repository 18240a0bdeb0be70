"""The values that user hooks return to the engine."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

NO_METRICS: Mapping[str, tuple["Tensor", "Tensor | int"]] = {}
NO_OUTPUTS: Mapping[str, "Tensor | Sequence[Any]"] = {}


class Loss(NamedTuple):
    """What a loss hook returns for one micro-batch: a sum and its divisor.

    The gradient of an optimizer step is the gradient of the sum of all totals, divided once by the sum of all counts,
    over every micro-batch of every rank. A hook may return a plain scalar instead: the mean over its micro-batch.
    """

    total: "Tensor"
    """Scalar with a gradient: the loss summed over the micro-batch (over items, tokens, pixels …)."""
    count: "Tensor | int"  # type: ignore[assignment]  # tuple.count, which is never called
    """How many elements `total` sums over. It may be a tensor on the device, which the engine does not wait for."""
    metrics: Mapping[str, tuple["Tensor", "Tensor | int"]] = NO_METRICS
    """Further metrics as name: (sum, count), summed over micro-batches and ranks before division."""
    outputs: Mapping[str, "Tensor | Sequence[Any]"] = NO_OUTPUTS
    """What the model says of each item, by name: tensors [items, ...] or lists with one entry per item. Evaluations
    feed metrics with them, and `runner predict` writes them; training does not keep them."""


@dataclass(frozen=True, kw_only=True)
class Data:
    """What a data hook returns."""

    train: Any
    """Map-style dataset: `__len__` and `__getitem__(index)`; `__getitems__(indices)` is used where it exists. Or a
    stream: `__iter__`, as torch's IterableDataset (docs/data.md). Or an object with `open_source(request)`, which
    provides its own steps (`runner.protocols.data.OpensSource`)."""
    eval: Any = None
    """Map-style dataset or stream to evaluate on, a mapping of names to such datasets, or None."""
    lengths: Any = None
    """Length of each training item, such as its tokens: a sequence or array, for `batch.cut=by_length`. None = the
    training dataset's attribute `lengths`."""
    collate: Callable[[list[Any]], Any] | None = None
    """Turns the items of one micro-batch into a batch; None = torch's default_collate."""
