"""Every promised product of axes × accumulation × clipping × equal or unequal counts × models: steps of one process."""

from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from runner.protocols import Clip
from runner.strategy.parallel import Parallel
from runner.strategy.parallel.schedule import PipelineSettings, Schedule
from tests.strategy.parallel.small_gpt import GPT, GPT2, MOE, Case, alone, assert_as_alone, train
from tests.strategy.ranks import on_ranks

PRODUCTS = ("tensor", "pipeline", "tensor × shard", "pipeline × tensor", "pipeline × shard", "context")
WITH_EXPERTS = ("expert", "expert × shard", "expert × replicate", "expert × pipeline", "expert × context")
MODELS = {"gpt": (GPT, PRODUCTS), "gpt2": (GPT2, PRODUCTS), "experts": (MOE, WITH_EXPERTS)}


def equally_long(case: Case) -> Case:
    """The case with windows of eight bytes each, so that all micro-batches count the same."""

    def collate(windows: list[Tensor]) -> Any:
        return case.collate([window.repeat(3)[:9] for window in windows])

    return case._replace(collate=collate)


def cells() -> Iterator[Any]:
    """All of them; tests of the single axes try others every day."""
    for model, (case, products) in MODELS.items():
        for axes, rounds, clips, equal in product(products, (1, 3), (False, True), (False, True)):
            words = [model, axes, f"{rounds} rounds", *["clipped"] * clips, *["equal counts"] * equal]
            yield pytest.param(equally_long(case) if equal else case, axes, rounds, clips, id=", ".join(words))


def part_of(axes: str, case: Case, rounds: int) -> Parallel:
    """The strategy with two ranks along each of these axes."""
    sizes: dict[str, Any] = {"shard": 1} | dict.fromkeys(axes.split(" × "), 2)
    schedule = Schedule.ONE_F_ONE_B if rounds > 1 else Schedule.GPIPE
    return Parallel(tensor_plan=dict(case.plan), pipelining=PipelineSettings(schedule=schedule), **sizes)


@pytest.mark.exhaustive
@pytest.mark.parametrize(("case", "axes", "rounds", "clips"), [*cells()])
def test_five_steps_are_those_of_one_process(case: Case, axes: str, rounds: int, clips: bool, tmp_path: Path) -> None:
    part, clip = part_of(axes, case, rounds), Clip(norm=0.1) if clips else Clip()
    expected = alone(case, rounds, clip)
    assert all(norm > 0.3 for norm in expected.norms)  # clipping changes every step
    ranks = 2 ** len(axes.split(" × "))
    for found in on_ranks(ranks, train, part, case, rounds, clip, scratch=tmp_path, axes=part.axes(ranks)):
        assert_as_alone(found, expected)
