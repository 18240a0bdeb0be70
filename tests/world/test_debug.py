"""run.debug: ranks that disagree about any collective are all told at once, by name."""

import re
import signal
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from runner.errors import RankError
from runner.world.debug import compared_collectives
from tests.conftest import Ended
from tests.engine.test_hook_ranks import HOOKS, TWO, loss
from tests.strategy.ranks import on_ranks


def wrong(world: Any, case: str) -> str:
    """What this rank is told of collectives of torch's."""
    other = world.rank == 1
    one = torch.ones(2)
    beside = dist.new_group(timeout=timedelta(seconds=30))
    with compared_collectives(world):
        dist.all_reduce(one)
        try:
            if case == "shape":
                dist.all_reduce(torch.ones(3 if other else 2))
            elif case == "dtype":
                dist.broadcast(torch.ones(2, dtype=torch.int64 if other else torch.float32), src=0)
            elif case == "operation":
                dist.barrier() if other else dist.all_gather([one, one], one.clone())
            elif case == "root":
                dist.broadcast(one, src=world.rank)
            elif case == "group":
                dist.all_reduce(one, group=beside if other else None)
            elif case == "missing":  # and goes on to the next
                if not other:
                    dist.all_reduce(torch.ones(5), group=beside)
                dist.all_reduce(one)
        except RankError as error:
            return str(error)
    return "nothing"


@pytest.mark.parametrize(
    ("case", "first", "second"),
    [
        ("shape", r"allreduce of float32\[2\]", r"allreduce of float32\[3\]"),
        ("dtype", r"broadcast of float32\[2\] of rank 0", r"broadcast of int64\[2\] of rank 0"),
        ("operation", r"allgather of float32\[2\]", "barrier"),
        ("root", r"broadcast of float32\[2\] of rank 0", r"broadcast of float32\[2\] of rank 1"),
        ("group", r"allreduce of float32\[2\]", r"allreduce of float32\[2\]"),
        ("missing", r"allreduce of float32\[5\]", r"allreduce of float32\[2\]"),
        ("nothing", "", ""),
    ],
)
def test_both_ranks_are_told_what_each_calls(tmp_path: Path, case: str, first: str, second: str) -> None:
    for told in on_ranks(2, wrong, case, scratch=tmp_path, timeout_s=20):
        if case == "nothing":
            assert told == "nothing"
        else:
            assert re.search(rf"rank 0: {first}.*, at .*test_debug\.py:\d+ in wrong\n", told), told
            assert re.search(rf"rank 1: {second}.*, at .*test_debug\.py:\d+ in wrong\n", told), told


DDP = [*TWO, "strategy=ddp", "run.debug=true"]


def test_a_collective_that_one_rank_calls_meets_no_other(runner: Callable[..., Ended]) -> None:
    ended = runner("train", "points", *HOOKS, loss("alone"), *DDP, code=10)
    assert re.search(r"rank 0: .* at .*paired\.py:\d+ in alone, by world\.gather\n", ended.stderr), ended.stderr
    assert re.search(r"rank 1: allreduce of float32\[42\], at .*module_trainable\.py:\d+ in _backward\n", ended.stderr)
    assert "socket" not in ended.stderr


def test_one_that_happens_to_fit_a_collective_of_the_engine_is_told_as_well(runner: Callable[..., Ended]) -> None:
    """Both are sums of one number: without the comparison, rank 1 would divide by what is no count."""
    ended = runner("train", "points", *HOOKS, loss("slipped"), *DDP, code=10)
    assert re.search(r"rank 0: allreduce of float32\[\], at .*paired\.py:\d+ in slipped\n", ended.stderr), ended.stderr
    assert re.search(r"rank 1: allreduce of float32\[\], at .*module_trainable\.py", ended.stderr)


def test_torchs_own_collective_in_an_uneven_step_is_named(runner: Callable[..., Ended]) -> None:
    ended = runner("train", "points", *HOOKS, loss("by_hand"), *DDP, code=10)
    assert re.search(r"rank 0: allgather of float32\[3, 2\], at .*paired\.py:\d+ in by_hand\n", ended.stderr)
    assert re.search(r"rank 1: allgather of float32\[2, 2\], at .*paired\.py:\d+ in by_hand\n", ended.stderr)


def test_without_debug_the_abort_says_what_names_it(runner: Callable[..., Ended]) -> None:
    ended = runner("train", "points", *HOOKS, loss("by_hand"), *DDP[:-1], code=1)
    assert f"was killed by {signal.SIGABRT.name}" in ended.stderr
    assert "run.debug=true names the call" in ended.stderr


def test_a_run_that_is_right_gives_the_same_numbers(runner: Callable[..., Ended]) -> None:
    debugged, plain = (
        runner("train", "points", *HOOKS, loss("gathered_loss"), *TWO, "strategy=fsdp", f"run.debug={on}")
        for on in ("true", "false")
    )
    assert debugged.metrics() == plain.metrics()
