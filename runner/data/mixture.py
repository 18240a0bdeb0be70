"""Several map-style datasets in one order, mixed by weights."""

import math
from collections.abc import Mapping
from fractions import Fraction
from typing import Any, final

import numpy
import xxhash

from runner.data.datasets import num_items
from runner.data.indexed import AroundItems, IndexedSource
from runner.data.permutation import Indices
from runner.data.state import check_state
from runner.data.steps import RankSteps
from runner.errors import DataError
from runner.protocols import Order, SourceRequest
from runner.world.seeds import mix

BLOCK_ITEMS = 1024
"""Items after which each dataset has given its share, to the item. More than 32 datasets have larger blocks."""
ENDLESS = 1 << 62
"""The items of a mixture: more than a run reads."""
KEYS = {"position", "since", "weights", "counts"}
"""Of a state."""


@final
class Mixture:
    """Several map-style datasets, of which each step has items in the proportion of weights. As `Data.train`.

    Each dataset has epochs of its own: each of its items is read once before any is read again.

    Args:
        datasets: by name.
        weights: by name, in any unit; 0 leaves a dataset out. None = the lengths, so that epochs end together,
            to within an item or two.

    Raises:
        DataError: there is no dataset, a dataset has no items or no length, or the weights are not those of the
            datasets.
    """

    def __init__(self, datasets: Mapping[str, Any], weights: Mapping[str, float] | None = None) -> None:
        if not datasets:
            raise DataError("a mixture needs datasets: Mixture({'one': …, 'other': …}).")
        self.datasets = dict(datasets)
        self.lengths = {name: num_items(dataset, f"train/{name}") for name, dataset in datasets.items()}
        self.weights = {name: float(weight) for name, weight in (weights or self.lengths).items()}
        if self.weights.keys() != self.datasets.keys():
            raise DataError(
                f"the weights of a mixture are for {', '.join(sorted(self.weights))}, but its datasets are "
                f"{', '.join(sorted(self.datasets))}. Give each dataset a weight; 0 leaves it out."
            )
        for name, weight in self.weights.items():
            if not (math.isfinite(weight) and weight >= 0):
                raise DataError(f"weight {weight} of the dataset {name!r} of a mixture is not a number from 0.")
        if not any(self.weights.values()):
            raise DataError("all weights of a mixture are 0. Give a dataset that is to be read a weight above 0.")

    def open_source(self, request: SourceRequest) -> "MixtureSource":
        """Its steps."""
        return MixtureSource(self, request)


@final
class Blend:
    """Where the items of a mixture come from: a pure function of the position, so that no position costs more."""

    def __init__(
        self, weights: Mapping[str, float], *, seed: int, since: int = 0, counts: Mapping[str, int] | None = None
    ) -> None:
        """Mix by these weights.

        Args:
            weights: by dataset.
            seed: of the places of each dataset's items within a block.
            since: the position from which they hold.
            counts: the items of each dataset that were read before it.
        """
        total = sum(map(Fraction, weights.values()))
        self.names = sorted(weights)
        self.shares = [Fraction(weights[name]) / total for name in self.names]
        self.since = since
        self.before = [(counts or {}).get(name, 0) for name in self.names]
        self.block_items = max(BLOCK_ITEMS, len(weights) ** 2)  # then the largest share is never below 0 after rounding
        self._largest = max(range(len(self.shares)), key=self.shares.__getitem__)
        self._seed = seed

    def at_block(self, block: int) -> list[int]:
        """The items of each dataset before a block: its share, rounded down, and what remains from the largest."""
        items = block * self.block_items
        counts = [math.floor(share * items) for share in self.shares]
        counts[self._largest] += items - sum(counts)
        return [count + before for count, before in zip(counts, self.before, strict=True)]

    def datasets(self, block: int) -> Indices:
        """The dataset of each item of a block, by number: spread evenly, from a random phase for each."""
        quotas = [end - start for start, end in zip(self.at_block(block), self.at_block(block + 1), strict=True)]
        phases = [mix(self._seed, block, number) / 2**63 for number in range(len(quotas))]
        places = [(numpy.arange(quota) + phase) / max(quota, 1) for quota, phase in zip(quotas, phases, strict=True)]
        order = numpy.argsort(numpy.concatenate(places), kind="stable")
        return numpy.repeat(numpy.arange(len(quotas)), quotas)[order]

    def counts(self, position: int) -> dict[str, int]:
        """The items of each dataset before a position."""
        block, place = divmod(position - self.since, self.block_items)
        inside = numpy.bincount(self.datasets(block)[:place], minlength=len(self.names)).tolist()
        return dict(zip(self.names, map(sum, zip(self.at_block(block), inside, strict=True)), strict=True))


@final
class MixedItems:
    """The items of a mixture by position. Keeps the places of the blocks that were read last."""

    def __init__(self, mixture: Mixture, orders: Mapping[str, Order], blend: Blend) -> None:
        self._datasets = [mixture.datasets[name] for name in blend.names]
        self._orders = [orders[name] for name in blend.names]
        self._blend = blend
        self._blocks: dict[int, tuple[Indices, Indices]] = {}

    def __len__(self) -> int:
        return ENDLESS

    def __getitem__(self, position: int) -> Any:
        block, place = divmod(position - self._blend.since, self._blend.block_items)
        if block not in self._blocks:
            kept = [*self._blocks.items()][-3:]  # workers read a few blocks at once
            self._blocks = dict(kept) | {block: self._places(block)}
        datasets, indices = self._blocks[block]
        return self._datasets[datasets[place]][int(indices[place])]

    def _places(self, block: int) -> tuple[Indices, Indices]:
        """The dataset of each item of a block, and its index there."""
        datasets = self._blend.datasets(block)
        indices = numpy.empty(len(datasets), dtype=numpy.int64)
        for number, start in enumerate(self._blend.at_block(block)):
            mine = datasets == number
            indices[mine] = _consecutive(self._orders[number], start, int(mine.sum()))
        return datasets, indices


def _consecutive(order: Order, start: int, num: int) -> Indices:
    """The indices of consecutive items of an order, epoch after epoch."""
    parts = [numpy.empty(0, dtype=numpy.int64)]
    stop = start + num
    while start < stop:
        epoch, first = divmod(start, order.num_items)
        last = min(first + stop - start, order.num_items)
        parts.append(order.indices(epoch, first, last))
        start += last - first
    return numpy.concatenate(parts)


@final
class _Positions:
    """The order of a mixture's items, which stand in order already."""

    num_items = ENDLESS

    def indices(self, epoch: int, start: int, stop: int) -> Indices:
        return numpy.arange(start, stop)


def _order(request: SourceRequest, name: str, dataset: Any) -> Order:
    order = request.order.build(dataset, seed=mix(request.seed, xxhash.xxh3_64_intdigest(name.encode())))
    if not isinstance(order, Order):
        rule = "gives batches, but a mixture takes single items of each dataset. Choose another order."
        raise DataError(f"the order ({type(order).__name__}) {rule}")
    return order


@final
class MixtureSource(AroundItems):
    """The steps of a mixture, whose items are named by their positions in it.

    Its state is the position, and since when the weights are what they are.
    """

    def __init__(self, mixture: Mixture, request: SourceRequest) -> None:
        self._mixture = mixture
        self._request = request
        self._orders = {name: _order(request, name, dataset) for name, dataset in mixture.datasets.items()}
        self._mix_by(Blend(mixture.weights, seed=request.seed))

    def _mix_by(self, blend: Blend) -> None:
        self._blend = blend
        steps = RankSteps.of(_Positions(), self._request)
        self._items = IndexedSource(MixedItems(self._mixture, self._orders, blend), steps, self._request)

    def state_dict(self) -> dict[str, Any]:
        """The position, and what was read before the present weights."""
        blend = self._blend
        counts = dict(zip(blend.names, blend.before, strict=True))
        return {"position": self.position, "since": blend.since, "weights": self._mixture.weights, "counts": counts}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue at a position. With other weights or datasets, each dataset goes on where it is."""
        check_state(state, KEYS, of="a mixture")
        position, seed = state["position"], self._request.seed
        blend = Blend(state["weights"], seed=seed, since=state["since"], counts=state["counts"])
        now = Blend(self._mixture.weights, seed=seed)
        if dict(zip(now.names, now.shares, strict=True)) != dict(zip(blend.names, blend.shares, strict=True)):
            blend = Blend(self._mixture.weights, seed=seed, since=position, counts=blend.counts(position))
        self._mix_by(blend)
        self._items.load_state_dict({"position": position})
