"""A function over the outputs of all items, during one evaluation."""

from collections.abc import Callable
from typing import Any, final

from runner.metric.collected import in_dataset_order, joined, on_host
from runner.metric.feeds import Feeds, is_filler, taken
from runner.metric.named_values import computed_on_main
from runner.protocols import MicroBatchLoss, World


@final
class AllItemsMeter:
    """Keeps the outputs that the function is fed with, in host memory, and calls it once, on rank 0."""

    def __init__(self, function: Callable[..., Any], name: str, feeds: Feeds) -> None:
        self._function = function
        self._name = name
        self._feeds = feeds
        self._kept: list[dict[str, Any]] = []
        self._values: dict[str, float] = {}

    def update(self, loss: MicroBatchLoss) -> None:
        """Keep the outputs, on the host: for those of all items, a device has no room."""
        if not is_filler(loss):
            self._kept.append(on_host(taken(loss, self._feeds, metric=self._name)))

    def merge(self, world: World) -> None:
        """Bring the outputs of all ranks into the order of the dataset, and call the function on rank 0. Collective."""
        kept = in_dataset_order(world, self._kept)
        self._values = computed_on_main(world, lambda: self._function(**joined(kept)), self._name)

    def compute(self) -> dict[str, float]:
        """What the function returned."""
        return self._values
