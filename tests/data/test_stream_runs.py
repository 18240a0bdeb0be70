"""Whole runs on streams and mixtures: what they train on, and what is said of those that cannot be trained on."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Ended

HOOKS = """
import os
from torch.utils.data import IterableDataset
from runner import Data
from user_hooks.points import Points

class Stream(IterableDataset):
    def __init__(self, items, seed):
        self.points = Points(items, seed)
        self.at = 0

    def __iter__(self):
        while self.at < len(self.points):
            self.at += 1
            yield self.points[self.at - 1]
        self.at = 0

class WithState(Stream):
    def state_dict(self):
        return {"at": self.at}

    def load_state_dict(self, state):
        self.at = state["at"]

class Shards:
    num_shards = 3

    def shard(self, rank, ranks):
        return [Points(50, 0)[index] for index in range(rank, 50, ranks)]

    def __iter__(self):
        return iter(Points(50, 0))

def stream():
    return Data(train=WithState(50, 0), eval=Stream(17, 1))

def shards():
    return Data(train=Shards(), eval=Stream(17, 1))

def uneven():
    return Data(train=Stream(50 - int(os.environ.get("RANK", 0)), 0))

class OneShard(Shards):
    num_shards = 1

def one_shard():
    return Data(train=OneShard())

def uneven_lengths():
    return Data(train=Points(50 - int(os.environ.get("RANK", 0)), 0))

def mixed(train):
    return Data(train=train, eval=Points(17, 1))
"""
PAIR = ["strategy=ddp", "hardware.processes=2"]
TRAIN = ["train", "points", "hardware=cpu"]
POINTS = "{_target_:user_hooks.points.Points,items:%d,seed:%d}"


@pytest.fixture(autouse=True)
def hooks(project: Path) -> None:
    (project / "user_hooks" / "streams.py").write_text(HOOKS)


def data(name: str) -> str:
    return f"data._target_=user_hooks.streams.{name}"


def losses(ended: Any) -> list[float]:
    return [line["train/loss"] for line in ended.metrics() if "train/loss" in line]


def assert_close(ended: Any, expected: Any) -> None:
    """fp32 sums over ranks in another order, through ten steps of AdamW."""
    assert len(ended.metrics()) == len(expected.metrics())
    for line, other in zip(ended.metrics(), expected.metrics(), strict=True):
        compared = {key: value for key, value in other.items() if "loss" in key or "accuracy" in key}
        assert {key: line[key] for key in compared} == pytest.approx(compared, rel=1e-5)


def test_a_stream_trains_and_evaluates_as_its_items_in_order_do(runner: Callable[..., Ended]) -> None:
    """Ten steps of 12 of 50 items: two epochs. Then other numbers of ranks and workers, and stops between them."""
    expected = runner(*TRAIN, "order=sequential")
    assert runner(*TRAIN, data("stream")).metrics() == expected.metrics()
    stopped = runner(*TRAIN, data("stream"), *PAIR, "loader.workers=1", "run.stop_at_step=4")
    resumed = runner("resume", str(stopped.run_dir.path), "hardware.processes=1", "strategy=single", "loader.workers=0")
    assert_close(resumed, expected)


def test_a_stream_in_shards_trains_alike_on_any_ranks(runner: Callable[..., Ended]) -> None:
    alone = runner(*TRAIN, data("shards"))
    stopped = runner(*TRAIN, data("shards"), "run.stop_at_step=6")
    resumed = runner("resume", str(stopped.run_dir.path), *PAIR)
    assert_close(resumed, alone)
    assert "the train stream (Shards) has no state: reading and discarding the " in resumed.stderr


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("uneven", "disagree on the number of items of the data hook's 'train' stream: more on rank 0, 49 on rank 1."),
        ("uneven_lengths", "disagree on the number of items of the data hook's 'train' dataset: 50 on rank 0, 49 on"),
        ("one_shard", "'train' stream (OneShard) has num_shards=1, fewer than the 2 data ranks"),
    ],
)
def test_what_two_ranks_cannot_read_ends_the_run(runner: Callable[..., Ended], name: str, said: str) -> None:
    ended = runner(*TRAIN, data(name), *PAIR, "batch.items=10", "eval.every_steps=null", code=5)
    assert said in ended.stderr


def test_a_mixture_is_declared_in_the_recipe_and_its_weights_change_on_resume(runner: Callable[..., Ended]) -> None:
    mixture = (
        "+data.train={_target_:runner.data.Mixture,"
        f"datasets:{{a:{POINTS % (50, 0)},b:{POINTS % (30, 2)}}},weights:{{a:3,b:1}}}}"
    )
    whole = runner(*TRAIN, data("mixed"), mixture)
    stopped = runner(*TRAIN, data("mixed"), mixture, "run.stop_at_step=4")
    directory = str(stopped.run_dir.path)
    refused = runner("resume", directory, "data.train.weights.b=2", code=2)
    assert "--allow data.train.weights.b" in refused.stderr
    pair = runner("resume", directory, *PAIR, "loader.workers=1", "run.stop_at_step=7")
    assert losses(pair) == pytest.approx(losses(whole)[:7], rel=1e-5)
    changed = runner("resume", directory, "data.train.weights.b=2", "--allow", "data.train.weights.b")
    assert changed.run_dir.read_status()["step"] == 10
    assert changed.metrics() != whole.metrics()
