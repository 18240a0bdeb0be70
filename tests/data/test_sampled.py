"""A batch sampler of a user's own: its batches are the micro-batches, in its order, on any number of ranks."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import pytest
import torch
from torch.utils.data import BatchSampler, RandomSampler, SequentialSampler

from runner.config.run_spec import Batch, Cut, Loader, Reader
from runner.data import Mixture
from runner.data.source import open_source, plan_at
from runner.errors import CheckpointError, DataError
from runner.protocols import Data
from tests.data.test_source import Seat
from tests.data.threads import on_threads

NUMBERS = [*range(100, 123)]


class ByTens:
    """Batches of unequal size, drawn anew in each epoch: some of one kind, then the others.

    Drawn from a generator of its own: ranks on threads share the global one.
    """

    epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[list[int]]:
        order = torch.randperm(23, generator=torch.Generator().manual_seed(self.epoch)).tolist()
        sizes = [3, 1, 2, 3] if self.epoch % 2 else [2, 2, 1, 3, 1]
        while order:
            for size in sizes:
                if order:
                    yield [order.pop() for _ in range(min(size, len(order)))]


@dataclass(frozen=True)
class Gives:
    """An order option."""

    what: Any

    def check(self, spec: Any) -> tuple[()]:
        return ()

    def build(self, dataset: Any, *, seed: int) -> Any:
        return self.what() if isinstance(self.what, type) else self.what


def source(spec: Any, order: Any, *, world: Any = None, reader: Reader = Reader.EACH_RANK, **changes: Any) -> Any:
    """In steps of four micro-batches of at most 3 items."""
    batch = Batch(**{"items": 12, "micro_items": 3, "accumulate": 1} | changes)
    loader = Loader(workers=0, prefetch=2, source=reader)
    return open_source(
        replace(spec, batch=batch, order=Gives(order), loader=loader), Data(train=NUMBERS), world or Seat()
    )


def counted(step: Any) -> list[list[int]]:
    return [micro.batch.tolist() for micro in step.micro_batches if micro.items]


def test_a_step_is_the_next_batches_whatever_the_ranks_and_stops(toy_spec: Any) -> None:
    whole = [(step.items, counted(step)) for step in islice(source(toy_spec, ByTens), 14)]
    assert len({str(step) for step in whole}) == 14
    assert max(item for _, step in whole[:4] for batch in step for item in batch) == 122
    for ranks, reader in ((2, Reader.EACH_RANK), (4, Reader.EACH_RANK), (2, Reader.RANK_0)):

        def rank(world: Any, reader: Reader = reader) -> Any:
            first = source(toy_spec, ByTens, world=world, reader=reader)
            steps = [*islice(first, 5)]
            second = source(toy_spec, ByTens, world=world, reader=reader)
            second.load_state_dict(first.state_dict())
            before = second.position
            steps += islice(second, 9)
            plan = plan_at(second, before)
            assert plan is not None
            assert [[NUMBERS[index] for index in micro.indices] for micro in plan.micro_batches] == [
                micro.batch.tolist() for micro in steps[5].micro_batches
            ]
            return steps

        of_ranks = on_threads(ranks, rank)
        seen = []
        for together in zip(*of_ranks, strict=True):
            rounds = zip(*(step.micro_batches for step in together), strict=True)
            batches = [micro.batch.tolist() for micros in rounds for micro in micros if micro.items]
            seen.append((together[0].items, batches))
        assert seen == whole


def test_every_item_comes_once_an_epoch_and_a_state_at_its_end_goes_on(toy_spec: Any) -> None:
    """torch's own sampler, which draws from the global generator: 8 batches, two steps."""
    sampler = BatchSampler(RandomSampler(NUMBERS), 3, drop_last=False)
    torch.manual_seed(1)
    first = source(toy_spec, sampler)
    steps = [*islice(first, 2)]
    epoch = [item for step in steps for batch in counted(step) for item in batch]
    assert sorted(epoch) == NUMBERS
    assert first.state_dict() == {"position": 23, "epoch": 0, "epoch_start": 0}
    torch.manual_seed(2)
    other = source(toy_spec, sampler)
    other.load_state_dict(first.state_dict())
    following = [item for step in islice(other, 2) for batch in counted(step) for item in batch]
    assert sorted(following) == NUMBERS
    assert following != epoch
    assert [counted(step) for step in islice(source(toy_spec, sampler), 2)] == [counted(step) for step in steps]
    assert other.state_dict() == {"position": 46, "epoch": 1, "epoch_start": 23}


LISTED = BatchSampler(SequentialSampler(NUMBERS), 3, drop_last=False)


@pytest.mark.parametrize(
    ("order", "changes", "said"),
    [
        (
            LISTED,
            {"micro_items": 2},
            r"gave a batch of 3 items, more than one rank forwards at once: batch.micro_items=2",
        ),
        (
            LISTED,
            {"items": 36},
            r"\(BatchSampler\) gave 8 batches in epoch 0, fewer than one step of .* = 12: every step",
        ),
        ([[1], []] * 2, {}, r"\(list\) gave an empty batch in epoch 0: leave it out"),
        (
            LISTED,
            {"cut": Cut.BY_LENGTH},
            r"\(BatchSampler\) gives batches, which are micro-batches as they are. Use batch",
        ),
        (7, {}, r"Gives.build returned a int, which is neither an order \(num_items, indices\) nor a batch sampler"),
    ],
)
def test_what_cannot_be_a_step_is_refused(toy_spec: Any, order: Any, changes: Any, said: str) -> None:
    with pytest.raises(DataError, match=said):
        next(iter(source(toy_spec, order, **changes)))


def test_a_position_inside_a_step_is_that_of_other_batches(toy_spec: Any) -> None:
    opened = source(toy_spec, LISTED)
    opened.load_state_dict({"position": 9, "epoch": 0, "epoch_start": 0})
    with pytest.raises(CheckpointError, match=r"at item 9, but the batches of the order make a step of items 0 to 12"):
        next(iter(opened))
    with pytest.raises(
        CheckpointError, match="a source with position, but this run reads a dataset by a batch sampler"
    ):
        opened.load_state_dict({"position": 12})


def test_a_mixture_takes_single_items(toy_spec: Any) -> None:
    spec = replace(toy_spec, order=Gives(LISTED))
    with pytest.raises(DataError, match=r"the order \(BatchSampler\) gives batches, but a mixture takes single items"):
        open_source(spec, Data(train=Mixture({"a": NUMBERS})), Seat())
