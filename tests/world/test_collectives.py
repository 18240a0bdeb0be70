"""What hooks and callbacks call to exchange values, on three real ranks and on one."""

import logging
import re
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.testing import assert_close

from runner import Collectives, Loss
from runner.errors import HookError, RankError
from runner.protocols import MicroBatch, StepBatches
from runner.strategy.ddp import DDP
from runner.strategy.fsdp import FSDP
from runner.world.hook_ranks import HookRanks
from runner.world.solo import SoloWorld
from tests.strategy.ranks import builder, model_of, on_ranks

RANKS = 3


class Scores(NamedTuple):
    """A named tuple among the values."""

    high: Tensor
    low: Tensor | None = None


@dataclass(slots=True)
class Found:
    """A dataclass among the values."""

    boxes: Tensor
    scores: Scores


def nested(rank: int) -> Any:
    """A different number of rows on each rank."""
    rows = torch.full((rank + 1, 2), float(rank))
    return {"found": [Found(rows, Scores(rows[:, 0].long()))], "alone": (torch.tensor(rank),)}


def collect(world: Any) -> Any:
    """Everything that returns the same on all ranks."""
    hooks = HookRanks(world)
    ranks, filler = hooks.all, hooks.filler
    rank = ranks.rank
    value = torch.tensor([rank, 1])
    order: list[int] = []
    with ranks.main_first():
        order.append(rank)
    with ranks.local_main_first():
        order.append(rank)
    trigger = ranks.trigger()
    before = trigger.check()
    if ranks.is_last:
        trigger.set()
    padded = ranks.pad({"rows": torch.ones(2, rank + 1), "number": torch.tensor(5)}, dim=1, value=-1, first=True)
    ranks.barrier()
    ranks.barrier(timeout_s=20)
    skips = filler if ranks.is_last and ranks.size > 1 else ranks
    return {
        "gathered": ranks.gather(nested(rank)),
        "objects": ranks.gather_objects({"rank": rank}),
        "reduced": {name: ranks.reduce(value, name) for name in ("sum", "mean", "max", "min")},
        "given": value,
        "broadcast": ranks.broadcast({"it": value}, source=-1),
        "object": ranks.broadcast_object(f"of {rank}", source=ranks.size - 1),
        "padded": padded,
        "trigger": (before, trigger.check(), trigger.check()),
        "on": (ranks.on_main(int)("1"), ranks.on_last(int)("2"), ranks.on_rank(ranks.size - 1)(int)("3")),
        "on local": (ranks.on_local_main(int)("1"), ranks.on_local_rank(1)(int)("2")),
        "without fillers": (
            skips.gather(value),
            skips.reduce(value),
            skips.reduce(value, "mean"),
            skips.reduce(value, "max"),
        ),
    }


def test_three_ranks_exchange_nested_values(tmp_path: Path) -> None:
    told = on_ranks(RANKS, collect, scratch=tmp_path)
    for rank, one in enumerate(told):
        (found,), (alone,) = one["gathered"]["found"], one["gathered"]["alone"]
        assert found.boxes.tolist() == [[0, 0], [1, 1], [1, 1], [2, 2], [2, 2], [2, 2]]
        assert (found.scores.high.tolist(), found.scores.low) == ([0, 1, 1, 2, 2, 2], None)
        assert alone.tolist() == [0, 1, 2]
        assert one["objects"] == [{"rank": 0}, {"rank": 1}, {"rank": 2}]
        reduced = {name: value.tolist() for name, value in one["reduced"].items()}
        assert reduced == {"sum": [3, 3], "mean": [1.0, 1.0], "max": [2, 1], "min": [0, 1]}
        assert one["given"].tolist() == [rank, 1], "what was given is left as it was"
        assert (one["broadcast"]["it"].tolist(), one["object"]) == ([2, 1], "of 2")
        missing = RANKS - 1 - rank
        assert one["padded"]["rows"].tolist() == [[-1] * missing + [1] * (rank + 1)] * 2
        assert one["padded"]["number"] == 5
        assert one["trigger"] == (False, True, False)
        assert one["on"] == ([1, None, None][rank], *[[None, None, 2][rank], [None, None, 3][rank]])
        assert one["on local"] == ([1, None, None][rank], [None, 2, None][rank])
        gathered, total, mean, largest = one["without fillers"]
        assert gathered.tolist() == [0, 1, 1, 1]
        assert (total.tolist(), mean.tolist(), largest.tolist()) == ([1, 2], [0.5, 1.0], [1, 1])


def test_one_process_gets_what_one_rank_alone_would_get() -> None:
    one = collect(SoloWorld(torch.device("cpu")))
    assert one["gathered"]["found"][0].boxes.tolist() == [[0, 0]]
    assert one["gathered"]["alone"][0].tolist() == [0]
    assert {name: value.tolist() for name, value in one["reduced"].items()} == {key: [0, 1] for key in one["reduced"]}
    assert (one["objects"], one["object"], one["on"]) == ([{"rank": 0}], "of 0", (1, 2, 3))
    assert one["trigger"] == (False, True, False)
    assert one["padded"]["rows"].tolist() == [[1], [1]]


def disagree(world: Any, case: str) -> str:
    """What this rank is told."""
    ranks = HookRanks(world).all
    other = ranks.rank == 1
    try:
        if case == "operation":
            ranks.reduce(torch.ones(2)) if other else ranks.gather(torch.ones(2))
        elif case == "dtype":
            ranks.gather({"x": torch.ones(2, dtype=torch.int64 if other else torch.float32)})
        elif case == "shape":
            ranks.reduce({"x": torch.ones(3 if other else 2)})
        elif case == "name":
            ranks.broadcast({"y" if other else "x": torch.ones(2)})
        elif case == "gradient":
            ranks.gather_with_grad(torch.ones(2, 2, requires_grad=not other))
        else:
            time.sleep(2 if other else 0)
            ranks.barrier(timeout_s=0.5)
    except RankError as error:
        return str(error)
    return "nothing"


@pytest.mark.parametrize(
    ("case", "words"),
    [
        (
            "operation",
            [r"rank 0: gather of a tensor float32\[2\], at .*test_collectives.py:\d+ in disagree", "rank 1: reduce"],
        ),
        ("dtype", [r"rank 0: gather of x float32\[2\]", r"rank 1: gather of x int64\[2\]", "dtypes"]),
        ("shape", [r"x float32\[2\]", r"x float32\[3\]", "shapes"]),
        ("name", ["broadcast.* of x", "broadcast.* of y"]),
        ("gradient", [r"rank 0: .*with a gradient", "rank 1"]),
    ],
)
def test_ranks_that_disagree_are_all_told_what_each_brings(tmp_path: Path, case: str, words: list[str]) -> None:
    for told in on_ranks(2, disagree, case, scratch=tmp_path, timeout_s=20):
        for expected in words:
            assert re.search(expected, told), told


def test_a_barrier_names_the_rank_that_is_missing(tmp_path: Path) -> None:
    told = on_ranks(2, disagree, "barrier", scratch=tmp_path, timeout_s=20)
    assert re.search(r"after 0\.5 s, not every rank had reached the barrier\. Rank 0 says: .*1", told[0], re.DOTALL)


def test_what_is_no_tensor_is_refused_with_its_name() -> None:
    ranks = HookRanks(SoloWorld(torch.device("cpu"))).all
    with pytest.raises(HookError, match=r"loss\.0 is a float, but ranks exchange tensors.* use gather_objects"):
        ranks.gather({"loss": [0.5]})
    with pytest.raises(HookError, match=r"reduce\(…, 'avg'\) is not known\. Use one of sum, mean, max, min"):
        ranks.reduce(torch.ones(1), "avg")
    with pytest.raises(HookError, match=r"there is no rank 1: the run has ranks 0 to 0"):
        ranks.broadcast(torch.ones(1), source=1)
    with pytest.raises(HookError, match="the tensor is a scalar, but must have rows"):
        ranks.gather_with_grad(torch.ones(()))
    with pytest.raises(HookError, match="same number of rows, but there are a 1, b 2"):
        ranks.gather_with_grad({"a": torch.ones(1), "b": torch.ones(2)})


def test_messages_of_all_ranks_are_logged_in_rank_order(caplog: pytest.LogCaptureFixture) -> None:
    ranks = HookRanks(SoloWorld(torch.device("cpu"))).all
    with caplog.at_level(logging.INFO, logger="runner"):
        ranks.log("one")
        ranks.log_all("two")
        ranks.log_in_order("three")
    assert caplog.messages == ["one", "two", "rank 0: three"]


# ── gather_with_grad ────────────────────────────────────────────────────────────────────────────────────────────────

ITEMS, WIDTH = 7, 3
CUTS = ([3, 2, 2], [7, 0, 0], [1, 0, 6], [0, 4, 3])
"""Items of each rank; 0 = a filler."""
X = torch.randn(2, ITEMS, WIDTH, generator=torch.Generator().manual_seed(0))


def contrast(left: Tensor, right: Tensor, lefts: Tensor, rights: Tensor, partner: Tensor) -> Tensor:
    """Which right belongs to which left and the other way round, and a term of each item by itself."""
    both = torch.nn.functional.cross_entropy(left @ rights.T, partner, reduction="sum")
    back = torch.nn.functional.cross_entropy(right @ lefts.T, partner, reduction="sum")
    return both + back + left.square().sum()


def by_hand() -> dict[str, Tensor]:
    """The gradient of one large batch, divided by its items, without any of the code under test."""
    model = build()
    left, right = model(X[0]), model(X[1])
    (contrast(left, right, left, right, torch.arange(ITEMS)) / ITEMS).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


def build() -> torch.nn.Module:
    torch.manual_seed(1)
    return torch.nn.Linear(WIDTH, 4)


def every_cut(world: Any, strategy: Any, as_mean: bool) -> Any:
    """One step of each cut: what it changes in the weights under SGD with a rate of 1, which is the gradient."""
    hooks = HookRanks(world)

    def loss(model: Any, batch: Any, items: int) -> Any:
        ranks: Collectives = hooks.all if items else hooks.filler
        left, right = model(batch[0]), model(batch[1])
        gathered, own = ranks.gather_with_grad({"sides": (left, right)})
        partner = torch.arange(own.start, own.stop)
        lefts, rights = gathered["sides"]
        total = contrast(left, right, lefts, rights, partner)
        return total / len(left) if as_mean else Loss(total, len(left))

    made = replace(
        builder(build=build, optimizer=lambda named: torch.optim.SGD([p for _, p in named], lr=1.0), loss=loss),
        loss=loss,
    )
    found = []
    for cut in CUTS:
        trainable = strategy.prepare(made, world)
        before = {name: full(value).clone() for name, value in model_of(trainable).named_parameters()}
        start, count = sum(cut[: world.rank]), cut[world.rank]
        part = slice(start, start + count) if count else slice(0, 1)
        trainable.forward_backward(StepBatches([MicroBatch(X[:, part], count)], ITEMS))
        trainable.update(measure=False)
        after = {name: full(value) for name, value in model_of(trainable).named_parameters()}
        found.append({name: (before[name] - after[name]).detach() for name in before})
    return found


@torch.no_grad()
def full(value: Any) -> Tensor:
    return value.full_tensor() if isinstance(value, DTensor) else value


@pytest.mark.parametrize("as_mean", [False, True])
@pytest.mark.parametrize("strategy", [DDP(), FSDP()], ids=["ddp", "fsdp"])
def test_the_gradient_over_ranks_is_that_of_one_large_batch(tmp_path: Path, strategy: Any, as_mean: bool) -> None:
    wanted = by_hand()
    for steps in on_ranks(RANKS, every_cut, strategy, as_mean, scratch=tmp_path):
        for step in steps:
            for name, gradient in wanted.items():
                assert_close(step[name], gradient, rtol=0, atol=2e-6)  # float32 sums in another order
