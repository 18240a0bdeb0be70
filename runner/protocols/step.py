"""The values that engine and strategy exchange in one optimizer step."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

NO_METRICS: Mapping[str, tuple["Tensor", "Tensor | int"]] = {}
NO_OUTPUTS: Mapping[str, "Tensor | Sequence[Any]"] = {}
NO_VALUES: Mapping[str, float] = {}


class MicroBatch(NamedTuple):
    """The input of one forward on one rank."""

    batch: Any
    """The result of collate, on the rank's device."""
    items: int
    """How many of its items count. 0 marks a filler, which keeps the number of micro-batches equal on all ranks."""


class StepBatches(NamedTuple):
    """One rank's part of one optimizer step."""

    micro_batches: Sequence[MicroBatch]
    """The micro-batches to accumulate; equally many on every rank."""
    items: int
    """Items of the whole step, over all ranks and micro-batches."""
    rounds: "Sequence[StepBatches]" = ()
    """The same, divided by round, where a phase updates its models several times in one step."""


class MicroBatchLoss(NamedTuple):
    """The loss of one micro-batch. Its total is `value` times `weight`, which are only multiplied when it is logged."""

    value: "Tensor"
    """Scalar: the hook's total, or its mean."""
    weight: int
    """1 for a total, the micro-batch's items for a mean, 0 for a filler."""
    count: "Tensor | int"  # type: ignore[assignment]  # tuple.count, which is never called
    """The number of elements that the total sums over."""
    is_mean: bool
    """Whether the hook returned a mean over items, so that every rank knows the count beforehand."""
    metrics: Mapping[str, tuple["Tensor", "Tensor | int"]] = NO_METRICS
    """The hook's metrics; none for a filler."""
    outputs: Mapping[str, "Tensor | Sequence[Any]"] = NO_OUTPUTS
    """In an evaluation the hook's outputs, with an entry for each item; none in training and for a filler."""


class StepLoss(NamedTuple):
    """The result of `forward_backward`. The host has not waited for any of its tensors."""

    losses: Sequence[MicroBatchLoss]
    """This rank's losses, one per micro-batch."""
    count: "Tensor | int"  # type: ignore[assignment]  # tuple.count, which is never called
    """The count of the whole step, summed over micro-batches and the ranks whose gradients are summed."""


class Update(NamedTuple):
    """The result of `update`."""

    stepped: bool
    """False if the step was skipped (an fp16 overflow); the schedule then does not advance."""
    grad_norm: "Tensor | None" = None
    """2-norm of the divided gradient before clipping; None if it was neither measured nor needed for clipping."""
    record: Mapping[str, float] = NO_VALUES
    """Further values to log for the step, by name."""


@dataclass(frozen=True, kw_only=True)
class Clip:
    """How gradients are clipped, after division by the global count."""

    norm: float | None = None
    """Largest 2-norm of the full gradient; null = off."""
    value: float | None = None
    """Largest absolute value of an element; null = off."""
