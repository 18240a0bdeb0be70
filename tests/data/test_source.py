"""A source: steps from a state, its state, and what is said where it cannot go on."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import pytest
import torch
from torch.utils.data import default_collate

from runner.config.run_spec import Batch
from runner.data.indexed import IndexedSource
from runner.data.order import Shuffled
from runner.data.source import endless, open_source, plan_at
from runner.data.steps import RankSteps
from runner.data.stream import step_batches
from runner.errors import CheckpointError, DataError
from runner.order.shuffled import Shuffled as ShuffledOption
from runner.protocols import Data, LoaderOptions, SourceRequest

CPU = torch.device("cpu")
ITEMS = [10 * index for index in range(10)]


@dataclass
class Seat:
    """Where a rank sits: all that is asked of a world while steps are read."""

    rank: int = 0
    size: int = 1
    device: torch.device = CPU


def request(*, rank: int = 0, ranks: int = 1, workers: int = 0, step_items: int = 4, micro_items: int = 2) -> Any:
    options = LoaderOptions(collate=default_collate, device=CPU, workers=workers, prefetch=2, pin_memory=False)
    return SourceRequest(
        step_items=step_items,
        micro_items=micro_items,
        world=Seat(rank, ranks),
        seed=3,
        order=ShuffledOption(),
        loader=options,
    )


def indexed(**changes: Any) -> Any:
    asked = request(**changes)
    return IndexedSource(ITEMS, RankSteps.of(Shuffled(len(ITEMS), seed=3), asked), asked)


def values(step: Any) -> Any:
    """The items of a step, and how many of each micro-batch count."""
    return [(micro.batch.tolist(), micro.items) for micro in step.micro_batches], step.items


@pytest.mark.parametrize("workers", [0, 2])
def test_the_state_after_any_step_continues_with_the_next_one(workers: int) -> None:
    whole = indexed()
    expected, states = [], []
    for step in islice(whole, 7):
        expected.append(values(step))
        states.append(whole.state_dict())
    assert [state["position"] for state in states] == [4, 8, 10, 14, 18, 20, 24]
    for done in (1, 3, 4):
        resumed = indexed(workers=workers)
        resumed.load_state_dict(states[done - 1])
        assert [values(step) for step in islice(resumed, 7 - done)] == expected[done:]
        assert resumed.position == whole.position


@pytest.mark.parametrize(
    ("ranks", "way_out"),
    [
        (1, "Use batch.items=10, or return more items"),
        (4, "Use batch.items=8, or"),
        (12, "Use at most 10 data ranks, or"),
    ],
)
def test_a_dataset_that_cannot_fill_one_step_is_refused(toy_spec: Any, ranks: int, way_out: str) -> None:
    spec = replace(toy_spec, batch=Batch(items=12, micro_items=1, accumulate=1))
    expected = f"'train' dataset has 10 items, fewer than one step of batch.items=12: .*{way_out}"
    with pytest.raises(DataError, match=expected):
        open_source(spec, Data(train=ITEMS), Seat(size=ranks))
    exact = replace(toy_spec, batch=Batch(items=10, micro_items=5, accumulate=2))
    assert next(iter(open_source(exact, Data(train=ITEMS), Seat()))).items == 10


def test_the_items_of_a_step_can_be_named_later() -> None:
    source = indexed(rank=1, ranks=2)
    step = next(iter(source))
    plan = plan_at(source, source.position - step.items)
    assert plan is not None
    assert [[10 * index for index in micro.indices] for micro in plan.micro_batches] == [
        micro.batch.tolist() for micro in step.micro_batches
    ]


def test_the_state_of_another_kind_of_source_is_refused() -> None:
    with pytest.raises(
        CheckpointError, match=r"a source with offset, position, but this run reads a map-style.*Resume"
    ):
        indexed().load_state_dict({"position": 4, "offset": 17})


class Letters:
    """A source without an index, over as many letters as there are."""

    def __init__(self, request: Any, text: Any) -> None:
        self.position, self._request, self._text = 0, request, text

    def __iter__(self) -> Iterator[Any]:
        size = self._request.step_items
        while self.position < len(self._text):
            letters = [ord(letter) for letter in self._text[self.position : self.position + size]]
            self.position += len(letters)
            yield step_batches(letters, self._request)

    def state_dict(self) -> Any:
        return {"position": self.position}

    def load_state_dict(self, state: Any) -> None:
        self.position = state["position"]


def test_a_source_without_an_index_names_no_items() -> None:
    source = Letters(request(), "abcdef")
    next(iter(source))
    assert plan_at(source, 0) is None


def test_a_source_that_ends_is_told_of() -> None:
    steps = endless(Letters(request(), "abcdef"))
    assert [next(steps).items, next(steps).items] == [4, 2]
    with pytest.raises(DataError, match=r"source \(Letters\) ended after 6 items.*begin again.*or lower run\.steps"):
        next(steps)


@pytest.mark.parametrize("length", [8, 5, 1])
def test_a_streams_step_is_split_as_that_of_a_dataset_is(length: int) -> None:
    """Together the ranks count every item once, in micro-batches as many on each; a filler repeats an item."""
    ranks = [step_batches([*range(length)], request(rank=rank, ranks=3, micro_items=1)) for rank in range(3)]
    assert {step.items for step in ranks} == {length}
    assert len({len(step.micro_batches) for step in ranks}) == 1
    rounds = zip(*(step.micro_batches for step in ranks), strict=True)
    counted = [item for micros in rounds for micro in micros for item in micro.batch.tolist()[: micro.items]]
    assert counted == [*range(length)]


class Opener:
    def __init__(self, opened: Any) -> None:
        self.opened = opened

    def open_source(self, request: Any) -> Any:
        return self.opened


class Nothing:
    def state_dict(self) -> Any:
        return {}


def test_what_is_no_source_is_told_by_what_it_lacks(toy_spec: Any) -> None:
    with pytest.raises(DataError, match=r"Opener\.open_source returned a Nothing without position, __iter__, load_st"):
        open_source(toy_spec, Data(train=Opener(Nothing())), Seat())


def test_a_run_opens_what_the_data_hook_returned(toy_spec: Any) -> None:
    letters = Letters(request(), "abc")
    assert open_source(toy_spec, Data(train=Opener(letters)), Seat()) is letters
    source = open_source(toy_spec, Data(train=ITEMS), Seat())
    assert sorted(item for micro in next(iter(source)).micro_batches for item in micro.batch.tolist()) == ITEMS
