"""What passes between the engine and a strategy in one optimizer step."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

NO_METRICS: Mapping[str, tuple["Tensor", "Tensor | int"]] = {}
NO_VALUES: Mapping[str, float] = {}


class MicroBatch(NamedTuple):
    """What one rank forwards at once."""

    batch: Any
    """What collate returned, on the rank's device."""
    items: int
    """How many items of it count. 0 marks a filler, forwarded so that every rank runs as many rounds, never counted."""


class StepBatches(NamedTuple):
    """One rank's share of one optimizer step."""

    micro_batches: Sequence[MicroBatch]
    """One per accumulation round; equally many on every rank."""
    items: int
    """Items of the whole step, over all ranks and rounds."""


class MicroBatchLoss(NamedTuple):
    """What came of one micro-batch: its total is `value` times `weight`, left unmultiplied until somebody logs it."""

    value: "Tensor"
    """Scalar: the hook's total, or its mean."""
    weight: int
    """1 for a total, the micro-batch's items for a mean, 0 for a filler."""
    count: "Tensor | int"  # type: ignore[assignment]  # tuple.count, which nobody calls
    """What the total sums over."""
    is_mean: bool
    """The hook returned a mean over items: every rank knows its count beforehand."""
    metrics: Mapping[str, tuple["Tensor", "Tensor | int"]] = NO_METRICS
    """As the hook returned them; none for a filler."""


class StepLoss(NamedTuple):
    """What `forward_backward` leaves behind. Nothing in it was read on the host."""

    losses: Sequence[MicroBatchLoss]
    """This rank's, one per round."""
    count: "Tensor | int"  # type: ignore[assignment]  # tuple.count, which nobody calls
    """Of the whole step: summed over rounds and ranks."""


class Update(NamedTuple):
    """What `update` did."""

    stepped: bool
    """False if the step was skipped (an fp16 overflow); the schedule then does not advance."""
    grad_norm: "Tensor | None" = None
    """2-norm of the divided gradient before clipping. There if it was measured or is needed to clip."""
    record: Mapping[str, float] = NO_VALUES
    """What else is logged of the step, by name."""


@dataclass(frozen=True, kw_only=True)
class Clip:
    """How gradients are clipped, after division by the global count."""

    norm: float | None = None
    """Largest 2-norm of the whole gradient; null = off."""
    value: float | None = None
    """Largest absolute value of an element; null = off."""
