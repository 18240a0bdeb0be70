"""A metric of torchmetrics during one evaluation."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, final

import torch
from torch import Tensor

from runner.metric.collected import in_dataset_order, on_host
from runner.metric.feeds import Feeds, Values, is_filler, taken
from runner.metric.named_values import computed_on_main
from runner.protocols import MicroBatchLoss, World

if TYPE_CHECKING:
    from torchmetrics import Metric


def open_meter(metric: "Metric", name: str, feeds: Feeds) -> "StateMeter | ReplayMeter":
    """The meter that gives the metric's value over all items, whatever number of ranks evaluated them."""
    from torchmetrics import Metric

    for module in metric.modules():
        if isinstance(module, Metric):  # the run's own collectives merge states; torchmetrics' would wait for all ranks
            module.sync_on_compute = module._to_sync = False
    return StateMeter(metric, name, feeds) if _merges_exactly(metric) else ReplayMeter(metric, name, feeds)


def _merges_exactly(metric: "Metric") -> bool:
    """Whether the states of several ranks can be merged into those of one that has seen every item.

    A state that is a mean, or one with a reduction of its own, weighs every rank alike, whatever its items; a metric
    inside another has states of its own.
    """
    from torchmetrics import Metric
    from torchmetrics.utilities.data import dim_zero_cat, dim_zero_max, dim_zero_min, dim_zero_sum

    orderless = (dim_zero_sum, dim_zero_min, dim_zero_max)
    if any(isinstance(module, Metric) for module in metric.modules() if module is not metric):
        return False
    return all(
        reduction in (None, dim_zero_cat) if isinstance(metric._defaults[state], list) else reduction in orderless
        for state, reduction in metric._reductions.items()
    )


@final
class StateMeter:
    """Updates the metric with each micro-batch, where that is computed, and merges the states of all ranks."""

    def __init__(self, metric: "Metric", name: str, feeds: Feeds) -> None:
        self._metric = metric
        self._name = name
        self._feeds = feeds
        self._lengths: list[Mapping[str, int]] = []  # of the states that are lists, after each update
        self._values: dict[str, float] = {}

    def update(self, loss: MicroBatchLoss) -> None:
        """Update the metric; a filler does not reach it."""
        if is_filler(loss):
            return
        values = taken(loss, self._feeds, metric=self._name)
        if not self._lengths:
            self._metric.to(_device(values))
        self._metric.update(**values)
        self._lengths.append({state: len(value) for state, value in self._states() if isinstance(value, list)})

    def merge(self, world: World) -> None:
        """Merge the states on the host, lists in the order of the dataset, and compute on rank 0. Collective."""
        totals = {state: value.cpu() for state, value in self._states() if isinstance(value, Tensor)}
        ranks = [*world.gather_on_main(totals if self._lengths else None)]
        lists = in_dataset_order(world, self._per_update())
        if world.is_main:
            self._load([states for states in ranks if states is not None], lists)
        self._values = computed_on_main(world, self._metric.compute, self._name)

    def compute(self) -> dict[str, float]:
        """What rank 0 has computed."""
        return self._values

    def _states(self) -> list[tuple[str, Any]]:
        return [(state, getattr(self._metric, state)) for state in self._metric._defaults]

    def _per_update(self) -> list[dict[str, list[Any]]]:
        """What each update has added to the states that are lists."""
        before: Mapping[str, int] = {}
        added = []
        for lengths in self._lengths:
            added.append(
                {
                    state: [_to_host(entry) for entry in getattr(self._metric, state)[before.get(state, 0) : length]]
                    for state, length in lengths.items()
                }
            )
            before = lengths
        return added

    def _load(self, ranks: list[dict[str, Tensor]], lists: list[dict[str, list[Any]]]) -> None:
        self._metric.cpu()
        for state, reduction in self._metric._reductions.items():
            if isinstance(self._metric._defaults[state], list):
                value: Any = [entry for update in lists for entry in update[state]]
            else:
                value = reduction(torch.stack([states[state] for states in ranks]))  # type: ignore[misc, operator]
            setattr(self._metric, state, value)
        self._metric._update_count, self._metric._computed = len(lists), None


@final
class ReplayMeter:
    """Keeps what the metric is fed with, and updates it on rank 0 with all items in the order of the dataset.

    For metrics whose states cannot be merged exactly. Needs memory for the outputs of the whole set.
    """

    def __init__(self, metric: "Metric", name: str, feeds: Feeds) -> None:
        self._metric = metric
        self._name = name
        self._feeds = feeds
        self._fed: list[dict[str, Any]] = []
        self._values: dict[str, float] = {}

    def update(self, loss: MicroBatchLoss) -> None:
        """Keep the outputs, on the host."""
        if not is_filler(loss):
            self._fed.append(on_host(taken(loss, self._feeds, metric=self._name)))

    def merge(self, world: World) -> None:
        """Update the metric with the outputs of all ranks, and compute, on rank 0. Collective."""
        fed = in_dataset_order(world, self._fed)
        if world.is_main:
            for values in fed:
                self._metric.update(**values)
        self._values = computed_on_main(world, self._metric.compute, self._name)

    def compute(self) -> dict[str, float]:
        """What rank 0 has computed."""
        return self._values


def _device(values: Values) -> torch.device:
    return next((value.device for value in values.values() if isinstance(value, Tensor)), torch.device("cpu"))


def _to_host(entry: Any) -> Any:
    return entry.cpu() if isinstance(entry, Tensor) else entry
