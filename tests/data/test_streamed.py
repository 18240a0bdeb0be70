"""Streams: the same global steps whatever the ranks, the workers and the stops between them."""

import logging
import random
import time
from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, get_worker_info

from runner.data import Stream
from runner.errors import CheckpointError, DataError
from tests.data.streams import STREAMS, Plain, Sharded, WithState, items_of, merged, source, steps_of
from tests.data.threads import on_threads

RANKS = st.integers(1, 4)


def go_on_with_other_ranks(data: Any, kind: str, step_items: int) -> None:
    """K3 for streams: each world begins with the state of the one before."""
    make, items = STREAMS[kind]
    expected = steps_of(items, step_items, epochs=2)
    seen: list[list[int]] = []
    state: Any = None
    while len(seen) < len(expected):
        ranks, micro_items = data.draw(RANKS), data.draw(st.integers(1, 5))
        steps = data.draw(st.integers(1, len(expected) - len(seen)))

        def run(world: Any, state: Any = state, micro_items: int = micro_items, steps: int = steps) -> Any:
            opened = source(make(), world=world, step_items=step_items, micro_items=micro_items)
            if state is not None:
                opened.load_state_dict(state)
            read = [*islice(opened, steps)]
            return read, opened.state_dict()

        results = on_threads(ranks, run)
        assert all(result[1] == results[0][1] for result in results), results
        state = results[0][1]
        seen += merged([result[0] for result in results], micro_items=micro_items)
        assert state["position"] == sum(map(len, seen))
    assert [sorted(step) for step in seen] == [sorted(step) for step in expected]


@given(data=st.data(), kind=st.sampled_from([*STREAMS]), step_items=st.integers(2, 12))
@settings(deadline=None, max_examples=50)
def test_stopping_anywhere_and_going_on_with_other_ranks_reads_the_same_steps(
    data: Any, kind: str, step_items: int
) -> None:
    go_on_with_other_ranks(data, kind, step_items)


@pytest.mark.exhaustive
@pytest.mark.timeout(900)
@given(data=st.data(), kind=st.sampled_from([*STREAMS]), step_items=st.integers(1, 25))
@settings(deadline=None, max_examples=1000)
def test_a_thousand_schedules_read_the_same_steps(data: Any, kind: str, step_items: int) -> None:
    go_on_with_other_ranks(data, kind, step_items)


@pytest.mark.parametrize("kind", STREAMS)
@pytest.mark.parametrize("workers", [1, 3])
def test_workers_read_what_the_rank_itself_would_and_continue_from_its_state(kind: str, workers: int) -> None:
    make, items = STREAMS[kind]
    expected = steps_of(items, 4, epochs=3)
    opened, seen, states = source(make(), workers=workers), [], []
    for step in islice(opened, len(expected)):
        seen.append(items_of(step.micro_batches))
        states.append(opened.state_dict())
    assert seen == expected
    for done, others in ((2, 0), (5, workers), (8, workers)):  # within an epoch, and in the next one
        resumed = source(make(), workers=others)
        resumed.load_state_dict(states[done - 1])
        assert [items_of(step.micro_batches) for step in islice(resumed, 4)] == expected[done : done + 4]


class DividesAmongWorkers:
    """As torch's documentation of IterableDataset shows it."""

    def __iter__(self) -> Iterator[int]:
        return iter(range(8) if get_worker_info() is None else [])


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_does_not_see_that_a_worker_reads_it(workers: int) -> None:
    assert items_of(next(iter(source(DividesAmongWorkers(), workers=workers))).micro_batches) == [0, 1, 2, 3]


def test_with_a_state_nothing_is_read_twice() -> None:
    whole = source(WithState(*range(25)))
    steps = iter(whole)
    for _ in range(3):
        next(steps)
    for stream, reads in ((WithState(*range(25)), 4), (Plain(*range(25)), 16)):
        resumed = source(stream)
        resumed.load_state_dict(whole.state_dict())
        assert items_of(next(iter(resumed)).micro_batches) == [12, 13, 14, 15]
        assert stream.reads == [reads]


def test_resuming_without_a_state_says_what_it_costs(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runner.data.reading.SKIP_S", 0.0)  # every time that it looks, time is up
    whole = source(Plain(*range(25)))
    assert [step.items for step in islice(whole, 3)] == [4, 4, 4]
    resumed = source(Stream(WithState(*range(25)), state=False))
    resumed.load_state_dict(whole.state_dict())
    monkeypatch.setattr("runner.data.reading.SKIP_S", 0.01)
    with caplog.at_level(logging.INFO, "runner"):
        next(iter(resumed))
    (said,) = caplog.messages
    assert said == (
        "the train stream (WithState) has no state: reading and discarding the 12 items of this epoch that were "
        "trained on, which state_dict and load_state_dict would save"
    )


class Slow(Plain):
    """As slow as real ones are."""

    def __iter__(self) -> Iterator[int]:
        for number in super().__iter__():
            time.sleep(0.02)
            yield number


@pytest.mark.parametrize("workers", [0, 1])
def test_long_skipping_says_how_far_it_is(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    monkeypatch.setattr("runner.data.reading.SKIP_S", 0.05)
    whole = source(Plain(*range(25)))
    for _ in islice(whole, 4):
        pass
    resumed = source(Slow(*range(25)), workers=workers)
    resumed.load_state_dict(whole.state_dict())
    with caplog.at_level(logging.INFO, "runner"):
        assert items_of(next(iter(resumed)).micro_batches) == [16, 17, 18, 19]
    progress = [message for message in caplog.messages if message.startswith("train stream: skipped ")]
    assert progress
    assert all(message.endswith(" of 16 items") for message in progress)


class Drawing:
    """Shuffles its items and adds noise, both from the generators that everybody shares."""

    def __iter__(self) -> Iterator[tuple[int, float]]:
        numbers = [*range(12)]
        random.shuffle(numbers)
        for number in numbers:
            yield number, torch.rand(()).item() + random.random() + numpy.random.rand()


def drawn(steps: Any) -> list[Any]:
    return [(micro.batch[0].tolist(), micro.batch[1].tolist()) for step in steps for micro in step.micro_batches]


def test_random_numbers_depend_on_epoch_and_item_alone() -> None:
    whole = source(Drawing())
    first = drawn(islice(whole, 2))
    state = whole.state_dict()
    rest = drawn(islice(whole, 4))  # a new iteration: what was left goes on
    assert sorted(item for items, _ in first for item in items) != [*range(8)]
    torch.manual_seed(1), random.seed(1), numpy.random.seed(1)
    before = torch.rand(1), random.random(), numpy.random.rand()
    torch.manual_seed(1), random.seed(1), numpy.random.seed(1)
    for workers in (0, 1):
        resumed = source(Drawing(), workers=workers)
        resumed.load_state_dict(state)
        assert drawn(islice(resumed, 4)) == rest
    assert (torch.rand(1), random.random(), numpy.random.rand()) == before, "the rank's own are left alone"


class Epochs(Plain):
    """Its order depends on the epoch."""

    def set_epoch(self, epoch: int) -> None:
        self.numbers = tuple(range(10 * epoch, 10 * epoch + 4))


@pytest.mark.parametrize("draw", [lambda: torch.rand(1), random.random, numpy.random.rand])
def test_a_stream_that_draws_must_not_say_otherwise(draw: Any) -> None:
    class Shuffling(Plain):
        def __iter__(self) -> Iterator[int]:
            draw()
            yield from super().__iter__()

    said = r"^the stream \(Shuffling\) drew random numbers, which .*draws=False\) says .*Leave draws=False out"
    with pytest.raises(DataError, match=said):
        next(iter(source(Stream(Shuffling(*range(25)), draws=False))))


def test_a_stream_that_does_not_draw_is_read_alike_without_seeds() -> None:
    for kind, (make, expected) in STREAMS.items():
        before = random.getstate()
        read = [*islice(source(Stream(make(), draws=False)), 2 * -(-len(expected) // 4))]
        assert merged([read], micro_items=2) == steps_of(expected, 4, epochs=2), kind
        assert random.getstate() == before


@pytest.mark.parametrize("workers", [0, 1])
def test_a_stream_is_told_the_epoch(workers: int) -> None:
    opened = source(Epochs(), workers=workers)
    assert [items_of(step.micro_batches)[0] for step in islice(opened, 3)] == [0, 10, 20]
    resumed = source(Epochs(), workers=workers)
    resumed.load_state_dict(opened.state_dict())
    assert [items_of(step.micro_batches)[0] for step in islice(resumed, 2)] == [30, 40]


@pytest.mark.parametrize("kind", STREAMS)
@pytest.mark.parametrize("ranks", [1, 3, 4])
def test_a_single_pass_reads_every_item_once_in_equally_many_micro_batches(kind: str, ranks: int) -> None:
    make, items = STREAMS[kind]

    def run(world: Any) -> Any:
        return [*source(make(), world=world, step_items=3 * ranks, micro_items=3).single_pass()]

    passes = on_threads(ranks, run)
    assert len({len(one) for one in passes}) == 1
    assert sorted(item for one in passes for item in items_of(one)) == sorted(items)


def test_a_rank_whose_shards_are_empty_runs_along_with_an_item_of_another() -> None:
    class Two(Sharded):
        num_shards, lengths = 3, (2, 0, 0)

    passes = on_threads(3, lambda world: [*source(Two(), world=world, step_items=6).single_pass()])
    assert [[(micro.batch.tolist(), micro.items) for micro in one] for one in passes] == [
        [([0, 1], 2)],
        [([1], 0)],
        [([1], 0)],
    ]


def test_too_few_shards_are_told_with_a_way_out_that_works() -> None:
    results = on_threads(6, lambda world: source(Sharded(), world=world, step_items=6))
    expected = (
        r"'train' stream \(Sharded\) has num_shards=5, fewer than the 6 data ranks.*more shards, use at most 5.*"
        r"Stream\(dataset, shard=False\)"
    )
    for result in results:
        with pytest.raises(DataError, match=expected):
            raise result

    class Few(Plain):
        num_shards = 1

        def shard(self, rank: int, ranks: int) -> Any:
            raise AssertionError

    def run(world: Any) -> Any:
        return [*islice(source(Stream(Few(*range(25)), shard=False), world=world, micro_items=2), 7)]

    assert merged(on_threads(2, run), micro_items=2) == steps_of([*range(25)], 4, epochs=1)


def test_more_ranks_than_the_run_has_shards_are_told() -> None:
    began = source(STREAMS["any_shards"][0](), step_items=17)
    next(iter(began))

    def run(world: Any) -> Any:
        resumed = source(STREAMS["any_shards"][0](), world=world, step_items=17)
        resumed.load_state_dict(began.state_dict())

    for result in on_threads(17, run):
        with pytest.raises(DataError, match=r"began with its 'train' stream in 16 shards, fewer than the 17 data"):
            raise result


@pytest.mark.parametrize(("more", "said"), [(2, "11"), (4, "more")])
def test_ranks_that_read_streams_of_unequal_length_are_told_on_each(more: int, said: str) -> None:
    def run(world: Any) -> Any:
        return [*islice(source(Plain(*range(9 + more * world.rank)), world=world, step_items=4), 5)]

    for result in on_threads(2, run):
        with pytest.raises(
            DataError, match=rf"ranks disagree on the number of items.*'train' stream: 9 on rank 0, {said} on rank 1"
        ):
            raise result


def test_ranks_that_see_other_shards_are_told() -> None:
    def run(world: Any) -> Any:
        stream = Sharded()
        stream.num_shards -= world.rank
        return source(stream, world=world)

    for result in on_threads(2, run):
        with pytest.raises(DataError, match=r"disagree on the number of shards .*: 5 on rank 0, 4 on rank 1"):
            raise result


def test_ranks_that_read_other_items_are_warned(caplog: pytest.LogCaptureFixture) -> None:
    def run(world: Any, differ: int = 1) -> Any:
        return [*islice(source(Plain(*range(world.rank * differ, 12)), world=world, step_items=4), 1)]

    on_threads(2, lambda world: run(world, 0))
    assert caplog.messages == []
    on_threads(2, run)
    assert "the ranks have read different items of the train stream" in caplog.messages[0]


@pytest.mark.parametrize(("items", "found"), [(0, "has 0 items"), (3, r"has 3 items.*Use batch\.items=3, or")])
def test_a_stream_that_cannot_fill_one_step_is_refused(items: int, found: str) -> None:
    with pytest.raises(DataError, match=rf"'train' stream \(Plain\) {found}"):
        [*islice(source(Plain(*range(items))), 5)]


def test_an_empty_stream_cannot_be_evaluated_on() -> None:
    with pytest.raises(DataError, match="dataset is empty"):
        [*source(Plain()).single_pass()]


def test_a_state_of_another_kind_or_of_other_shards_is_refused() -> None:
    with pytest.raises(CheckpointError, match=r"a source with position, but this run reads a stream.*Resume"):
        source(Plain(1)).load_state_dict({"position": 4})
    state = source(Sharded()).state_dict()
    with pytest.raises(CheckpointError, match=r"stream with num_shards=5, but this run's has 1 shards: its items"):
        source(Plain(1)).load_state_dict(state)
    fewer = Sharded()
    fewer.num_shards = 4
    with pytest.raises(CheckpointError, match=r"with num_shards=5, but this run's has num_shards=4"):
        source(fewer).load_state_dict(state)


def test_a_stream_that_has_become_shorter_is_told() -> None:
    whole = source(Plain(*range(25)))
    for _ in islice(whole, 3):
        pass
    for workers in (0, 1):
        resumed = source(Plain(*range(6)), workers=workers)
        resumed.load_state_dict(whole.state_dict())
        with pytest.raises(DataError, match=r"^the stream \(Plain\) ended after 6 items of an epoch of which 12"):
            next(iter(resumed))


def test_a_state_that_no_checkpoint_can_hold_is_told() -> None:
    class Tensors(WithState):
        def state_dict(self) -> Any:
            return {"at": torch.tensor(self.at)}

    opened = source(Tensors(*range(25)))
    next(iter(opened))
    with pytest.raises(DataError, match=r"state_dict that a checkpoint cannot hold: .*Tensor.*state=False"):
        opened.state_dict()


def test_a_loader_with_workers_of_its_own_cannot_be_read_by_a_worker() -> None:
    loader: DataLoader[int] = DataLoader([1, 2], batch_size=None, num_workers=2)
    with pytest.raises(DataError, match=r"num_workers=2, which a process of loader.workers=1 cannot start\. Set"):
        source(loader, workers=1)
