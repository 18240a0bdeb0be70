"""Law 6: a checkpoint belongs to the run. Saved under one strategy, it goes on under another as if nothing had been.

The table in docs/resume_and_sweeps.md is made of the measured differences: see interchange_table.py.
"""

import functools
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.conftest import CHECKOUT, Ended, Zygote
from tests.parity.options import STRATEGIES, TOWER, placed, tensors

SAVED_AT, STEPS = 4, 7  # the next three losses; step 5 ends an epoch of 50 with 2 items
COMMON = [*TOWER, f"run.steps={STEPS}", "optimizer.lr=0.01", "checkpoint.every_steps=null"]
RANKS = (1, 2, 4)
FSDP = ("fsdp", "fsdp_grad_op", "hsdp", "hsdp_grad_op")
OF_FSDP = ("diloco", "local_sgd", "parallel")
"""Strategies that save and load as fsdp does, or what a mean of replicas is: a few others show it."""
MEET = ("single", "fsdp", "deepspeed_zero3")
SLICE = {
    ("fsdp", 2, "single", 1),
    ("fsdp", 4, "ddp", 2),
    ("fsdp_grad_op", 2, "hsdp", 2),
    ("single", 1, "fsdp", 2),
    ("ddp", 2, "hsdp_grad_op", 2),
    ("ddp", 2, "deepspeed_zero2", 2),
    ("deepspeed_zero3", 2, "fsdp", 2),
}


@dataclass(frozen=True)
class Source:
    """A run that was never interrupted, and another that was stopped on its way."""

    losses: dict[int, float]
    tensors: dict[str, Tensor]
    stopped: Path


def ways() -> list[tuple[str, int]]:
    """Every strategy on each number of ranks that it takes."""
    return [(strategy, ranks) for strategy in STRATEGIES for ranks in (RANKS if strategy != "single" else (1,))]


def pairs() -> Iterator[tuple[tuple[str, int], tuple[str, int]]]:
    """Everything that saves × everything that loads; the strategies of OF_FSDP with those of MEET and themselves."""
    for saved, loaded in product(ways(), ways()):
        names = {saved[0], loaded[0]}
        if not names & {*OF_FSDP} or len(names) == 1 or names & {*MEET}:
            yield saved, loaded


def cells() -> Iterator[object]:
    """Every pair, of which a few are tried every day."""
    for saved, loaded in pairs():
        marks = () if (*saved, *loaded) in SLICE else (pytest.mark.exhaustive,)
        name = f"{saved[0]}:{saved[1]}-{loaded[0]}:{loaded[1]}"
        yield pytest.param(saved, loaded, marks=marks, id=name)


def on(strategy: str, ranks: int) -> list[str]:
    """The overrides; four ranks take a step in three rounds, fewer in as many as it takes by threes."""
    return [*placed(strategy, ranks), f"batch.micro_items={1 if ranks == 4 else 3}"]


def losses(ended: Ended) -> dict[int, float]:
    """By step, of what follows the checkpoint."""
    return {
        line["step"]: line["train/loss"] for line in ended.metrics() if line["step"] > SAVED_AT and "train/loss" in line
    }


def trained(ended: Ended) -> dict[str, Tensor]:
    """Model and optimizer after the last step."""
    found = tensors(ended, STEPS, prefix="")
    return {name: tensor for name, tensor in found.items() if name.startswith(("model.", "optimizer."))}


@pytest.fixture(scope="session")
def source(zygote: Zygote, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Source]:
    """The runs of one strategy on so many ranks, made when first asked for."""

    @functools.cache
    def make(strategy: str, ranks: int, *more: str) -> Source:
        directory = tmp_path_factory.mktemp(f"{strategy}_{ranks}_")
        project = shutil.copytree(CHECKOUT / "tests" / "project", directory / "project")
        ended = []
        for stop in ([], [f"run.stop_at_step={SAVED_AT}"]):
            argv = [*COMMON, *on(strategy, ranks), *more, *stop]
            ended.append(zygote.start(argv, cwd=project, scratch=directory, env={}).wait(timeout_s=90))
            assert ended[-1].code == 0, ended[-1].stderr
        return Source(losses(ended[0]), trained(ended[0]), ended[1].run_dir.path)

    return make


def of_one_arithmetic(saved: tuple[str, int], loaded: tuple[str, int]) -> bool:
    """Their uninterrupted runs are equal bit by bit: what FSDP's keep whole differs, and for how long.

    DeepSpeed's stages are not: stage 1 adds up rounds before ranks, stage 3 steps by parameter and not by flat row.
    """
    in_groups = saved[1] > 2  # hsdp is then two groups of two; on fewer ranks it is fsdp
    family = {name: name.partition("_")[0] if in_groups else "fsdp" for name in FSDP}
    return saved[1] == loaded[1] and family.get(saved[0], saved[0]) == family.get(loaded[0], loaded[0])


def assert_equal(resumed: Ended, expected: Source) -> None:
    """To the last bit."""
    assert losses(resumed) == expected.losses
    weights = trained(resumed)
    assert weights.keys() == expected.tensors.keys()
    assert all(torch.equal(tensor, expected.tensors[name]) for name, tensor in weights.items())


@pytest.mark.parametrize(("saved", "loaded"), [*cells()])
def test_a_run_is_continued_by_any_strategy(
    runner: Callable[..., Ended],
    source: Any,
    tmp_path: Path,
    record_property: Callable[[str, object], None],
    saved: Any,
    loaded: Any,
) -> None:
    expected, overrides = source(*saved), on(*loaded)
    copy = str(shutil.copytree(expected.stopped, tmp_path / "run"))
    # Another number of replicas with steps of their own is another run, though not yet in their warm-up.
    resumed = runner("resume", copy, *overrides, "--allow", "strategy", timeout_s=90)
    ours, theirs = losses(resumed), expected.losses
    assert ours.keys() == theirs.keys() == set(range(SAVED_AT + 1, STEPS + 1))
    record_property("interchange", [*saved, *loaded, max(abs(ours[step] - theirs[step]) for step in theirs)])
    assert ours == pytest.approx(theirs, abs=1e-6)
    weights = trained(resumed)
    assert weights.keys() == expected.tensors.keys()
    if of_one_arithmetic(saved, loaded):
        assert_equal(resumed, expected)
    for name in weights.keys() - {"model.seen"}:  # that one counts rounds
        # fp32 sums in another order, through three steps of AdamW.
        torch.testing.assert_close(weights[name], expected.tensors[name], rtol=0, atol=2e-6)


@pytest.mark.exhaustive
@pytest.mark.parametrize(("saved", "loaded"), [(1, 2), (2, 1)])
def test_stages_1_and_2_continue_each_other_bit_by_bit(
    runner: Callable[..., Ended], source: Any, tmp_path: Path, saved: int, loaded: int
) -> None:
    """In steps of one round: of several, stage 1 adds up the rounds before the ranks, and stage 2 after them."""
    whole = "batch.micro_items=6"
    expected = source(f"deepspeed_zero{saved}", 2, whole)
    copy = shutil.copytree(expected.stopped, tmp_path / "run")
    assert_equal(runner("resume", str(copy), *on(f"deepspeed_zero{loaded}", 2), whole, timeout_s=90), expected)
