"""A pipeline takes the steps of one process, with the loss hook unchanged, and tells what it cannot cut."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest

from runner.protocols import Clip
from runner.strategy.fsdp.settings import ShardSettings
from runner.strategy.parallel import Parallel
from runner.strategy.parallel.schedule import PipelineSettings, Schedule
from tests.strategy.parallel.small_gpt import GPT, GPT2, Case, alone, assert_as_alone, seeded_gpt, seeded_gpt2, train
from tests.strategy.ranks import on_ranks

CLIP = Clip(norm=0.5)
UNITS = ShardSettings(wrap_classes=["Block"])


DEEP = GPT._replace(build=partial(seeded_gpt, depth=4))
DEEP_GPT2 = GPT2._replace(build=partial(seeded_gpt2, depth=4))
"""Four blocks, for two stages on each of two ranks."""


def pipeline(case: Case, schedule: str = "1f1b", stages_per_rank: int = 1, **keys: Any) -> Parallel:
    """The strategy with two pipeline ranks, and the case's tensor plan."""
    settings = PipelineSettings(schedule=Schedule(schedule), stages_per_rank=stages_per_rank)
    return Parallel(pipeline=2, pipelining=settings, tensor_plan=dict(case.plan), **keys)


def exhaustive(*values: Any) -> Any:
    """A row of a table that only the exhaustive matrices run."""
    return pytest.param(*values, marks=pytest.mark.exhaustive)


LAYOUTS = [
    (GPT, {"shard": 1}, 1, Clip()),
    (GPT2, {"shard": 1}, 3, CLIP),
    (GPT, {"shard": 1, "tensor": 2}, 3, CLIP),
    (GPT2, {"shard": 2}, 3, CLIP),
    exhaustive(GPT, {"shard": 1}, 3, CLIP),
    exhaustive(GPT, {"shard": 2, "shards": UNITS}, 3, CLIP),
    exhaustive(GPT, {"shard": 2, "shards": UNITS}, 1, Clip()),
    exhaustive(GPT, {"shard": 1, "replicate": 2}, 3, CLIP),
    exhaustive(GPT2, {"shard": 1}, 1, Clip()),
    exhaustive(GPT2, {"shard": 1, "tensor": 2}, 1, Clip()),
    exhaustive(GPT2, {"shard": 1, "tensor": 2}, 3, CLIP),
    exhaustive(GPT2, {"shard": 1, "replicate": 2}, 3, CLIP),
]


@pytest.mark.parametrize(("case", "sizes", "num_micro_batches", "clip"), LAYOUTS)
def test_every_layout_takes_the_steps_of_one_process(
    case: Case, sizes: dict[str, Any], num_micro_batches: int, clip: Clip, tmp_path: Path
) -> None:
    part = pipeline(case, "1f1b" if num_micro_batches > 1 else "gpipe", **sizes)
    assert_stages_as_alone(part, case, num_micro_batches, clip, tmp_path, steps=5)


SCHEDULES = [
    (DEEP, "interleaved_1f1b", 2, 6, {"shard": 1}),
    (DEEP_GPT2, "zero_bubble_v", 2, 3, {"shard": 1}),
    (GPT, "zero_bubble", 1, 6, {"shard": 1}),
    exhaustive(DEEP, "gpipe", 2, 3, {"shard": 1}),
    exhaustive(DEEP, "zero_bubble", 2, 6, {"shard": 1}),
    exhaustive(DEEP, "zero_bubble_v", 2, 6, {"shard": 1}),
    exhaustive(DEEP_GPT2, "interleaved_1f1b", 2, 6, {"shard": 1}),
    exhaustive(DEEP, "interleaved_1f1b", 2, 6, {"shard": 2, "shards": UNITS}),
    exhaustive(DEEP, "zero_bubble_v", 2, 6, {"shard": 2, "shards": UNITS}),
    exhaustive(DEEP, "zero_bubble", 1, 6, {"shard": 2, "shards": UNITS}),
    exhaustive(DEEP, "interleaved_1f1b", 2, 3, {"shard": 1, "tensor": 2}),
    exhaustive(DEEP, "zero_bubble", 1, 3, {"shard": 1, "tensor": 2}),
]


@pytest.mark.parametrize(("case", "schedule", "stages_per_rank", "num_micro_batches", "sizes"), SCHEDULES)
def test_every_schedule_takes_the_steps_of_one_process(
    case: Case, schedule: str, stages_per_rank: int, num_micro_batches: int, sizes: dict[str, Any], tmp_path: Path
) -> None:
    part = pipeline(case, schedule, stages_per_rank, **sizes)
    assert_stages_as_alone(part, case, num_micro_batches, CLIP, tmp_path, steps=2)


def assert_stages_as_alone(
    part: Parallel, case: Case, num_micro_batches: int, clip: Clip, scratch: Path, *, steps: int
) -> None:
    """Losses within 1e-6; weights within the rounding of fp32 sums in another order."""
    expected = alone(case, num_micro_batches, clip, steps)
    ranks = 4 if part.tensor == 2 or part.shard == 2 or part.replicate == 2 else 2
    args = (part, case, num_micro_batches, clip, steps)
    for found in on_ranks(ranks, train, *args, scratch=scratch, axes=part.axes(ranks)):
        assert_as_alone(found, expected)
