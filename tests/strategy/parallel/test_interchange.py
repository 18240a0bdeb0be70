"""A checkpoint of any axes goes on under any others, and under single, fsdp and DeepSpeed: the losses are one run's."""

import json
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Ended
from tests.strategy.parallel.small_gpt import GPT

RECIPE = """\
# Try it: runner train split_lm
defaults:
  - base
  - _self_
name: split_lm
model: {_target_: user_hooks.pydoc_lm.build_model, width: 16, depth: 2, heads: 4}
data: {_target_: user_hooks.pydoc_lm.build_data, context: 16}
loss: {_target_: user_hooks.pydoc_lm.compute_loss}
batch: {items: 12, micro_items: 2}
run: {steps: 6}
clip: {norm: 0.5}
log: {every_steps: 1}
eval: {every_steps: null, at_end: false}
optimizer: {lr: 1.0e-3, weight_decay: 0.1}
blocks: {classes: [Block]}
"""
PLAN = "{" + ", ".join(f"{name}: '{style}'" for name, style in GPT.plan.items()) + "}"
PARALLEL = ["strategy=parallel", f"++strategy.tensor_plan={PLAN}"]
LAYOUTS: dict[str, tuple[int, list[str]]] = {
    "single": (1, ["strategy=single"]),
    "fsdp": (2, ["strategy=fsdp"]),
    "deepspeed_zero3": (2, ["strategy=deepspeed_zero3"]),
    "tensor 2": (2, [*PARALLEL, "strategy.tensor=2"]),
    "tensor 4": (4, [*PARALLEL, "strategy.tensor=4"]),
    "tensor 2 × shard 2": (4, [*PARALLEL, "strategy.tensor=2", "strategy.shard=2"]),
    "context 2": (2, ["strategy=parallel", "strategy.context=2"]),
    "tensor 2 × replicate 2": (4, [*PARALLEL, "strategy.tensor=2", "strategy.shard=1", "strategy.replicate=2"]),
}
EVERYDAY = {("tensor 2", "single"), ("fsdp", "tensor 2"), ("tensor 2 × shard 2", "deepspeed_zero3")}
CELLS = [
    pytest.param(
        saved,
        resumed,
        id=f"{saved} to {resumed}",
        marks=() if (saved, resumed) in EVERYDAY else pytest.mark.exhaustive,
    )
    for saved, resumed in permutations(LAYOUTS, 2)
    if "2" in saved + resumed or "4" in saved + resumed
]


@pytest.fixture
def recipe(project: Path) -> None:
    (project / "recipes" / "split_lm.yaml").write_text(RECIPE)


def placed(layout: str) -> list[str]:
    """The overrides of a layout."""
    if layout.startswith("deepspeed") and find_spec("deepspeed") is None:
        pytest.skip("needs the extra deepspeed")
    ranks, overrides = LAYOUTS[layout]
    return ["hardware=cpu", f"hardware.processes={ranks}", "hardware.oversubscribe=true", *overrides]


def losses(ended: Ended) -> dict[int, float]:
    """The loss of each step."""
    lines = map(json.loads, ended.run_dir.metrics.read_text().splitlines())
    return {line["step"]: line["train/loss"] for line in lines}


@cache
def undisturbed(runner: Any) -> dict[int, float]:
    return losses(runner("train", "split_lm", "run.dir=undisturbed", *placed("single")))


@pytest.mark.usefixtures("recipe")
@pytest.mark.parametrize(("saved", "resumed"), CELLS)
def test_a_run_goes_on_under_other_axes(runner: Callable[..., Ended], saved: str, resumed: str) -> None:
    expected = undisturbed(runner)
    runner("train", "split_lm", "run.dir=run", "run.stop_at_step=3", *placed(saved))
    found = losses(runner("resume", "run", "run.stop_at_step=null", *placed(resumed)))
    assert found.keys() == expected.keys()
    assert list(found.values()) == pytest.approx(list(expected.values()), rel=2e-6)
