"""The group `metric`: what evaluations measure besides the loss."""

from collections.abc import Mapping
from typing import Protocol

from runner.protocols.part import Part
from runner.protocols.step import MicroBatchLoss
from runner.protocols.world import World


class Meter(Protocol):
    """A metric during one evaluation, on one rank: updated with every micro-batch, merged over ranks, computed."""

    def update(self, loss: MicroBatchLoss) -> None:
        """Add one micro-batch. Leave tensors on their device: the host must not wait for them here."""
        ...

    def merge(self, world: World) -> None:
        """Combine with the meters of the other ranks, once, after the last update. Collective.

        The n-th micro-batches of all ranks, in rank order, are consecutive items of the evaluation set; only the last
        of a rank may be a filler. So whoever needs all items in the order of the dataset takes them round by round.

        Args:
            world: the ranks over which losses are summed: those that evaluated different items, or parts of the same.
        """
        ...

    def compute(self) -> Mapping[str, float]:
        """The metric's values by name. Called after `merge`, and then the same on every rank."""
        ...


class Metric(Part, Protocol):
    """What an evaluation measures, besides the means of the loss and of the loss hook's own metrics."""

    def build(self, *, name: str, on_device: bool) -> Meter:
        """Create a meter for one evaluation of one set.

        Args:
            name: the metric's own in the recipe: metric.<name>.
            on_device: whether the device supports float64 sums; if not, the host reads values one by one.
        """
        ...
