"""batch.items = micro_items × accumulate × data ranks, from any two of the first three."""

from typing import Any

import pytest

from runner.config.rules import BatchKeys, divide, loader_faults
from runner.config.run_spec import Batch, Loader, Reader
from runner.errors import Fault


@pytest.mark.parametrize(
    ("keys", "ranks", "expected"),
    [
        ({"items": 64}, 2, (64, 32, 1)),
        ({"items": 64, "micro_items": 8}, 2, (64, 8, 4)),
        ({"items": 64, "accumulate": 4}, 2, (64, 8, 4)),
        ({"micro_items": 8, "accumulate": 3}, 2, (48, 8, 3)),
        ({"items": 48, "micro_items": 8, "accumulate": 3}, 2, (48, 8, 3)),
    ],
)
def test_two_numbers_give_the_third(keys: Any, ranks: int, expected: Any) -> None:
    batch = divide(BatchKeys(**keys), data_ranks=ranks)
    assert isinstance(batch, Batch)
    assert (batch.items, batch.micro_items, batch.accumulate) == expected


@pytest.mark.parametrize(
    ("keys", "ranks", "key", "words"),
    [
        ({}, 1, "batch.items", "must be given: the items of one optimizer step over all ranks"),
        ({"micro_items": 8}, 1, "batch.items", "must be given, or also batch.accumulate, so that it can be derived"),
        ({"accumulate": 8}, 1, "batch.items", "must be given, or also batch.micro_items, so that"),
        ({"items": 63}, 2, "batch.items", "63 is not a multiple of data ranks = 2. Use 62 or 64."),
        ({"items": 63, "micro_items": 8}, 2, "batch.items", "micro_items × data ranks = 8 × 2 = 16. Use 48 or 64."),
        ({"items": 7, "micro_items": 8}, 1, "batch.items", "Use 8."),
        ({"items": 10, "accumulate": 4}, 1, "batch.items", "accumulate × data ranks = 4. Use 8 or 12."),
        ({"items": 64, "micro_items": 8, "accumulate": 3}, 2, "batch.accumulate", "3 disagrees with items"),
    ],
)
def test_numbers_that_do_not_divide_name_the_nearest_that_do(keys: Any, ranks: int, key: str, words: str) -> None:
    fault = divide(BatchKeys(**keys), data_ranks=ranks)
    assert isinstance(fault, Fault)
    assert fault.key == key
    assert words in fault.message


def test_auto_is_as_large_as_can_be_until_the_run_finds_what_fits() -> None:
    assert divide(BatchKeys(items=64, micro_items="auto"), data_ranks=2) == Batch(
        items=64, micro_items=32, accumulate=1, auto=True
    )


@pytest.mark.parametrize(
    ("keys", "key", "words"),
    [
        (
            {"accumulate": 2},
            "batch.micro_items",
            "auto finds how many of batch.items fit into memory. Give batch.items",
        ),
        ({"items": 64, "accumulate": 2}, "batch.micro_items", "and leave batch.accumulate null"),
        ({"items": 63}, "batch.items", "63 is not a multiple of data ranks = 2. Use 62 or 64."),
    ],
)
def test_auto_needs_the_items_of_a_step_alone(keys: Any, key: str, words: str) -> None:
    fault = divide(BatchKeys(**keys, micro_items="auto"), data_ranks=2)
    assert isinstance(fault, Fault)
    assert fault.key == key
    assert words in fault.message


def test_ranks_that_try_out_a_batch_by_themselves_read_it_themselves() -> None:
    loader, batch = Loader(workers=0, prefetch=2, source=Reader.RANK_0), Batch(items=8, micro_items=8, accumulate=1)
    (fault,) = loader_faults(loader, Batch(items=8, micro_items=8, accumulate=1, auto=True))
    assert fault.key == "loader.source"
    assert fault.message.startswith("rank_0 cannot be used with batch.micro_items=auto: each rank tries by itself")
    assert not [*loader_faults(loader, batch)]
