"""batch.micro_items=auto under a real limit of memory: what is found fits, the next larger does not."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import Ended
from tests.parity.options import placed, tensors

HOOKS = [
    "model._target_=user_hooks.hungry.build_model",
    "~model.dropout",
    "data._target_=user_hooks.hungry.build_data",
    "loss._target_=user_hooks.hungry.loss",
    "eval.every_steps=null",
]
TRAIN = ["train", "points", *HOOKS, "batch.items=24", "run.steps=2"]
DIVISORS = [1, 2, 3, 4, 6, 8, 12, 24]


def found(ended: Any) -> Any:
    return json.loads(ended.run_dir.provenance.read_text())[-1]["batch"]


def test_the_largest_that_fits_is_found_and_the_next_does_not_fit(runner: Callable[..., Ended], project: Path) -> None:
    limit = "+data.room_mib=340"
    ended = runner(*TRAIN, "batch.micro_items=auto", limit)
    batch = found(ended)
    fits = batch["micro_items"]
    assert 1 < fits < 24
    assert (batch["items"], batch["accumulate"], batch["auto"]) == (24, 24 // fits, False)
    larger = DIVISORS[DIVISORS.index(fits) + 1]
    assert f"batch.micro_items=auto: {fits} ({larger} do not fit), {24 // fits} micro-batches a step" in ended.stderr
    refused = runner(*TRAIN, f"batch.micro_items={larger}", limit, f"run.dir={project / 'refused'}", code=7)
    assert "OutOfMemoryError: out of memory: " in refused.stderr
    assert "allocate memory" in refused.stderr
    assert "Use a smaller batch.micro_items, or let batch.micro_items=auto find" in refused.stderr
    same = runner(*TRAIN, f"batch.micro_items={fits}")
    for name, tensor in tensors(same, 2, "").items():
        mine = tensors(ended, 2, "")[name]
        assert torch.equal(mine.nan_to_num(), tensor.nan_to_num()), f"{name}: weights, optimizer, generators untouched"
    assert ended.metrics() == same.metrics()


def test_where_all_of_it_fits_it_is_one_round(runner: Callable[..., Ended]) -> None:
    ended = runner("train", "points", "batch.micro_items=auto", "run.steps=3")
    assert found(ended) == {"items": 12, "micro_items": 12, "accumulate": 1, "auto": False}
    assert ended.metrics() == runner("train", "points", "run.steps=3").metrics()


def test_not_even_one_item_says_what_it_needs(runner: Callable[..., Ended], project: Path) -> None:
    ended = runner(*TRAIN, "batch.micro_items=auto", "+data.room_mib=24", f"run.dir={project / 'run'}", code=7)
    assert "batch.micro_items=auto: not even one item fits" in ended.stderr
    assert "you tried to allocate 16777216 bytes" in ended.stderr
    assert "Use activation_checkpointing.what=blocks" in ended.stderr


def test_a_strategy_that_cannot_be_rehearsed_says_so_before_launch(runner: Callable[..., Ended]) -> None:
    ended = runner("check", "points", "strategy=deepspeed_zero1", "batch.micro_items=auto", code=2)
    assert "auto rehearses steps without the other ranks" in ended.stderr
    ended = runner("check", "points", "strategy=ddp", "hardware.processes=2", "batch.micro_items=auto")
    assert "12 items = as many micro_items as fit, at most 6 × 2 data ranks" in ended.stdout


@pytest.mark.parametrize("strategy", [pytest.param("ddp", marks=pytest.mark.exhaustive), "fsdp"])
def test_ranks_agree_on_what_fits_on_all(runner: Callable[..., Ended], strategy: str) -> None:
    rooms = ["+data.room_mib=1000", "+data.room_of_rank_1_mib=500"]
    ended = runner(*TRAIN, "batch.micro_items=auto", *placed(strategy, 2), *rooms)
    small = runner(*TRAIN, "batch.micro_items=auto", *placed(strategy, 2), rooms[0])
    assert 1 <= found(ended)["micro_items"] < found(small)["micro_items"] <= 12
    assert "micro-batches a step" in ended.stderr


@pytest.mark.parametrize(
    ("strategy", "room"),
    [
        ("single", 500),
        pytest.param("ddp", 620, marks=pytest.mark.exhaustive),
        pytest.param("fsdp", 560, marks=pytest.mark.exhaustive),
    ],
)
def test_a_run_of_what_was_found_lasts_to_its_end(runner: Callable[..., Ended], strategy: str, room: int) -> None:
    lasting = [*TRAIN, *placed(strategy, 2), "+model.mib=16", "+model.dropout=0", "optimizer=adamw", "run.steps=5"]
    whole = ["eval.every_steps=3", "eval.micro_items=1", "checkpoint.every_steps=4"]
    ended = runner(*lasting, *whole, "batch.micro_items=auto", f"+data.room_mib={room}")
    assert 1 < found(ended)["micro_items"] < 24
    given = runner(*lasting, *whole, "batch.micro_items=2")
    for mine, theirs in zip(ended.metrics(), given.metrics(), strict=True):
        assert mine == pytest.approx(theirs, rel=1e-5)  # fp32 sums in another order


def test_what_callbacks_keep_is_counted(runner: Callable[..., Ended]) -> None:
    heavy = [*TRAIN, "+model.mib=48", "batch.micro_items=auto", "+data.room_mib=670"]
    plain, averaged = runner(*heavy), runner(*heavy, "callback=[ema]")
    assert 1 <= found(averaged)["micro_items"] < found(plain)["micro_items"]
