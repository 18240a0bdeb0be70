"""Context parallelism takes the steps of one process, whatever the lengths of sequences."""

from pathlib import Path
from typing import Any

import pytest

from runner.protocols import Clip
from runner.strategy.fsdp.settings import ShardSettings
from runner.strategy.parallel import Parallel
from tests.strategy.parallel.small_gpt import GPT, GPT2, Case, alone, assert_as_alone, train
from tests.strategy.ranks import on_ranks

CLIP = Clip(norm=0.5)
UNITS = ShardSettings(wrap_classes=["Block"])

LAYOUTS = [
    pytest.param(GPT, {"context": 2, "shard": 1}, 2, 1, Clip(), id="context"),
    pytest.param(GPT, {"context": 2, "shards": UNITS}, 2, 3, CLIP, id="context, in units, accumulated and clipped"),
    pytest.param(GPT2, {"context": 2, "shard": 1}, 2, 3, CLIP, id="gpt2"),
]


@pytest.mark.parametrize(("case", "sizes", "ranks", "num_micro_batches", "clip"), LAYOUTS)
def test_steps_are_those_of_one_process(
    case: Case, sizes: Any, ranks: int, num_micro_batches: int, clip: Clip, tmp_path: Path
) -> None:
    part = Parallel(**sizes)
    expected = alone(case, num_micro_batches, clip)
    axes = part.axes(ranks)
    for found in on_ranks(ranks, train, part, case, num_micro_batches, clip, scratch=tmp_path, axes=axes):
        assert_as_alone(found, expected)
