"""A step that is not finite is left out, ends the run or is refused in advance: the same under every strategy."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from runner.data.order import Shuffled
from runner.data.steps import RankSteps
from tests.conftest import Ended
from tests.parity.options import placed

HOOKS = '''
import torch
from torch import nn
from torch.nn import functional as F

from runner import Data

MARKS = (7, 31)


class Points:
    """Three numbers and a class for each of 50 items; the two marked ones have a fourth number that is 1."""

    def __init__(self):
        self.x = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
        self.mark = torch.zeros(50, 1)

    def __len__(self):
        return 50

    def __getitem__(self, index):
        return self.x[index], self.mark[index], int(self.x[index].sum() > 0)


class SpoilGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, scores, mark):
        ctx.save_for_backward(mark)
        return scores.view_as(scores)

    @staticmethod
    def backward(ctx, gradient):
        (mark,) = ctx.saved_tensors
        return torch.where(mark > 0, torch.nan, gradient), None


def build_model():
    """Five hidden units: no number of weights is even, but those of the first layer's 15 and the last's 15."""
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 3))


def build_data(marked=2):
    data = Points()
    data.mark[list(MARKS) if marked == 2 else slice(marked)] = 1.0
    return Data(train=data)


def nan_loss(model, batch):
    x, mark, y = batch
    return F.cross_entropy(model(x), y) * torch.where(mark.sum() > 0, torch.nan, 1.0)


def nan_gradient(model, batch):
    x, mark, y = batch
    return F.cross_entropy(SpoilGradient.apply(model(x), mark), y)
'''
MARKS = (7, 31)
STEPS = 10
TRAIN = [
    *("train", "points", f"run.steps={STEPS}", "eval.every_steps=null", "log.every_steps=1"),
    *("model._target_=user_hooks.marked.build_model", "~model.dropout"),
    *("data._target_=user_hooks.marked.build_data", "batch.items=10", "batch.micro_items=5"),
]
SKIP = "guard.non_finite=skip"
EVERYWHERE = [("ddp", 2), ("fsdp", 2), ("deepspeed_zero1", 2), ("deepspeed_zero2", 2), ("deepspeed_zero3", 2)]
ZERO = EVERYWHERE[2:]


@pytest.fixture(autouse=True)
def hooks(project: Path) -> None:
    (project / "user_hooks" / "marked.py").write_text(HOOKS)


def where(strategy: str, ranks: int) -> list[str]:
    whole = ["strategy.param_persistence_threshold=0"] if strategy == "deepspeed_zero3" else []
    return [*placed(strategy, ranks), *whole]


def loss(kind: str) -> str:
    return f"loss._target_=user_hooks.marked.{kind}"


def marked_batches(ranks: int) -> list[tuple[int, list[tuple[int, int, list[int]]]]]:
    """Of the first 30 batches, those with a marked item: their number, and each such micro-batch.

    An epoch is five batches. The first two lose one or two of them each, and no more.
    """
    order = Shuffled(50, seed=0)
    readers = [
        RankSteps(order=order, step_items=10, micro_items=5, rank=rank, ranks=ranks).starting_at(0)
        for rank in range(ranks)
    ]
    found = []
    for number in range(30):
        micro_batches = [
            (rank, index, share.indices)
            for rank, reader in enumerate(readers)
            for index, share in enumerate(next(reader).micro_batches)
            if set(MARKS) & set(share.indices)
        ]
        if micro_batches:
            found.append((number, micro_batches))
    return found


def steps_left_out(ranks: int) -> list[tuple[int, list[tuple[int, int, list[int]]]]]:
    """The step that each marked batch would have been, if it is read before the last step is done."""
    events = [(number - before + 1, found) for before, (number, found) in enumerate(marked_batches(ranks))]
    return [(step, found) for step, found in events if step <= STEPS]


def noted(run_dir: Path) -> list[tuple[int, list[tuple[int, int, list[int]]]]]:
    """What guard.json says: each step, and rank, number and items of its micro-batches that are not finite."""
    events: list[dict[str, Any]] = json.loads((run_dir / "guard.json").read_text())
    return [
        (event["step"], sorted((one["rank"], one["micro_batch"], one["items"]) for one in event["found"]))
        for event in events
    ]


def losses(ended: Ended) -> dict[int, float]:
    return {line["step"]: line["train/loss"] for line in ended.metrics() if "train/loss" in line}


@pytest.fixture
def alone(runner: Callable[..., Ended], project: Path) -> Callable[[str], dict[int, float]]:
    """The losses of one process that leaves the marked steps out."""

    def run(kind: str) -> dict[int, float]:
        ended = runner(*TRAIN, SKIP, loss(kind), "strategy=single", f"run.dir={project / 'alone'}")
        assert noted(ended.run_dir.path) == steps_left_out(ranks=1)
        return losses(ended)

    return run


@pytest.mark.parametrize(
    ("kind", "strategies"),
    [
        ("nan_gradient", EVERYWHERE),
        ("nan_loss", [("ddp", 2), ("deepspeed_zero2", 2)]),  # each has a gradient that is not finite, too
        pytest.param("nan_loss", EVERYWHERE, marks=pytest.mark.exhaustive),
    ],
    ids=["nan_gradient", "nan_loss", "nan_loss everywhere"],
)
def test_every_strategy_leaves_the_same_steps_out_and_goes_on_as_one_process(
    runner: Callable[..., Ended], alone: Callable[[str], dict[int, float]], kind: str, strategies: Any
) -> None:
    expected = alone(kind)
    assert sorted(expected) == list(range(1, STEPS + 1))
    assert len(steps_left_out(ranks=1)) >= 3, "several steps, or the test says little"
    for strategy, ranks in strategies:
        ended = runner(*TRAIN, SKIP, loss(kind), *where(strategy, ranks), timeout_s=120)
        assert noted(ended.run_dir.path) == steps_left_out(ranks), strategy
        assert ended.metrics()[-1]["guard/skipped_steps"] == len(steps_left_out(ranks)), strategy
        assert losses(ended) == pytest.approx(expected, rel=0, abs=1e-5), strategy  # fp32 sums in another order


@pytest.mark.parametrize(("strategy", "ranks"), ZERO)
def test_a_run_that_is_never_finite_ends_after_max_skipped(
    runner: Callable[..., Ended], project: Path, strategy: str, ranks: int
) -> None:
    options = [SKIP, "guard.max_skipped=2", "+data.marked=50", loss("nan_loss"), f"run.dir={project / 'run'}"]
    ended = runner(*TRAIN, *options, *where(strategy, ranks), code=6, timeout_s=120)
    assert "NonFiniteError: guard.max_skipped=2 steps in a row were " in ended.stderr
    assert [step for step, _ in noted(project / "run")] == [1, 1]
    assert ended.run_dir.read_status()["state"] == "failed"


@pytest.mark.parametrize(
    ("strategy", "ranks", "kind"),
    [
        ("deepspeed_zero1", 2, "nan_loss"),
        ("deepspeed_zero2", 2, "nan_gradient"),
        ("deepspeed_zero3", 2, "nan_loss"),
        ("deepspeed_zero3", 2, "nan_gradient"),
        pytest.param("deepspeed_zero1", 2, "nan_gradient", marks=pytest.mark.exhaustive),
        pytest.param("deepspeed_zero2", 2, "nan_loss", marks=pytest.mark.exhaustive),
    ],
)
def test_a_run_that_is_to_stop_names_step_rank_and_items(
    runner: Callable[..., Ended], project: Path, strategy: str, ranks: int, kind: str
) -> None:
    step, micro_batches = steps_left_out(ranks)[0]
    options = [loss(kind), "guard.non_finite=stop", f"run.dir={project / 'run'}"]
    ended = runner(*TRAIN, *options, *where(strategy, ranks), code=6, timeout_s=120)
    assert noted(project / "run") == [(step, micro_batches)]
    rank, number, items = micro_batches[0]
    assert f"NonFiniteError: step {step} is not finite" in ended.stderr
    assert f"On rank {rank}, micro-batch {number}, items {', '.join(map(str, items))} of the dataset" in ended.stderr
    what = "loss" if kind == "nan_loss" else "gradient"
    assert f"the {what} is not finite; " in ended.stderr


def test_deepspeed_refuses_to_ignore_what_it_always_skips(runner: Callable[..., Ended], project: Path) -> None:
    options = ["guard.non_finite=ignore", loss("nan_loss"), f"run.dir={project / 'run'}"]
    for strategy, ranks in ZERO:
        ended = runner(*TRAIN, *options, *where(strategy, ranks), code=2)
        assert (
            "guard.non_finite: ignore applies steps whose gradient is not finite, but DeepSpeed skips every such step."
            in (" ".join(ended.stderr.split()))
        )
        assert "Use stop or skip, or another strategy." in ended.stderr
        assert not (project / "run").exists(), "nothing was launched"
