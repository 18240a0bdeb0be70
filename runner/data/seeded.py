"""Reading items so that the random numbers that each draws depend on run.seed, its epoch and its index alone."""

from collections.abc import Callable
from typing import Any, Protocol, final, runtime_checkable

import torch

from runner.world.seeds import DrawWatch, mix, mix_each, seed_host, seed_python


@runtime_checkable
class ReadsMany(Protocol):
    """A dataset that reads several items at once; torch's own loader asks for the same method."""

    def __getitems__(self, indices: list[int]) -> list[Any]:
        """The items, in this order."""
        ...


def read_function(dataset: Any) -> Callable[[list[int]], list[Any]]:
    """From indices to items: by `__getitems__` where there is one, as in torch."""
    if isinstance(dataset, ReadsMany):
        return dataset.__getitems__
    get = dataset.__getitem__
    return lambda indices: [get(index) for index in indices]


@final
class SeededItems:
    """The items of a dataset, the same whoever reads them and beside whichever others.

    Seeding Python's and NumPy's generators for an item takes as long as reading a tiny one, and few items draw from
    them. So many items are read without, and then it is checked whether any has drawn. If so, they are read again, each
    after seeding, and so are all that follow. An item thus has the same numbers either way.

    With `__getitems__`, an item could only draw from where those before it left the generators: a dataset that draws
    there is read item by item, too.
    """

    def __init__(self, dataset: Any, *, seed: int) -> None:
        self._num_items = len(dataset)
        self._seed = seed
        self._reads_many = isinstance(dataset, ReadsMany)
        self._read_many = read_function(dataset)
        self._read_one = self._one_of_many if self._reads_many else dataset.__getitem__
        self._watch = DrawWatch(mix(seed))
        self._draws = False
        """Whether an item is known to have drawn."""

    def read(self, indices: list[int], epoch: int) -> list[Any]:
        """Items, in this order. The generators are left as the last one leaves them if it is read after seeding."""
        seeds = mix_each(self._seed, epoch * self._num_items, indices)
        if not self._draws:
            items = self._unless_drawn(indices, seeds)
            if items is not None:
                seed_python(seeds[-1])
                return items
            self._draws = True
        return self._each(indices, seeds, seed_host)

    def _unless_drawn(self, indices: list[int], seeds: list[int]) -> list[Any] | None:
        """The items; None if any has drawn from a generator that was not seeded for it."""
        try:
            if self._reads_many:
                self._watch.begin(torch_seed=seeds[-1])
                items = self._read_many(indices)
            else:
                self._watch.begin()
                items = self._each(indices, seeds, torch.default_generator.manual_seed)
        except Exception:
            if not self._watch.drew():  # else what was drawn may be why
                raise
            return None
        return None if self._watch.drew() else items

    def _each(self, indices: list[int], seeds: list[int], seed: Callable[[int], Any]) -> list[Any]:
        items = []
        read = self._read_one
        for index, its_seed in zip(indices, seeds, strict=True):
            seed(its_seed)
            items.append(read(index))
        return items

    def _one_of_many(self, index: int) -> Any:
        return self._read_many([index])[0]
