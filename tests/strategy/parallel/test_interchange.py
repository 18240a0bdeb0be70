"""A checkpoint of any axes goes on under any others, and under single, ddp, fsdp and DeepSpeed: as one run's.

The table in docs/parallel.md is made of the measured differences: see tests/parity/interchange_table.py.
"""

import shutil
from collections.abc import Callable, Iterator
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.conftest import Ended
from tests.parity.options import tensors
from tests.strategy.parallel.small_runs import COMMON, LAYOUTS, MODELS, PLAIN, placed

SAVED_AT, STEPS = 3, 6
EVERYDAY = {
    ("gpt", "tensor 2", "single"),
    ("gpt", "fsdp", "tensor 2"),
    ("gpt", "tensor 2 × shard 2", "deepspeed_zero3"),
    ("gpt", "pipeline 2 × tensor 2", "single"),
    ("gpt", "ddp", "pipeline 2 × tensor 2"),
    ("experts", "expert 2", "single"),
}


def cells() -> Iterator[Any]:
    """Every pair of layouts of which one has axes; a few are tried every day."""
    for model, layouts in LAYOUTS.items():
        for saved, resumed in permutations(layouts, 2):
            if not {saved, resumed} <= PLAIN.keys():
                marks = () if (model, saved, resumed) in EVERYDAY else pytest.mark.exhaustive
                yield pytest.param(model, saved, resumed, id=f"{model}: {saved} to {resumed}", marks=marks)


def sources() -> Iterator[Any]:
    """Every layout but that of one process; those of which a run goes on every day are looked at every day."""
    everyday = {(model, saved) for model, saved, _ in EVERYDAY}
    for model, layouts in LAYOUTS.items():
        for layout in [*layouts][1:]:
            marks = () if (model, layout) in everyday else pytest.mark.exhaustive
            yield pytest.param(model, layout, id=f"{model}: {layout}", marks=marks)


def begun(trained: Callable[..., Ended], model: str, layout: str, stop: int = SAVED_AT) -> Ended:
    """The run of a model under a layout up to a step, made when first asked for."""
    words = [*MODELS[model], *COMMON, "data.context=16", f"run.steps={STEPS}", "eval.at_end=false"]
    return trained("train", *words, f"run.stop_at_step={stop}", *placed(model, layout))


def losses(ended: Ended) -> dict[int, float]:
    """The loss of each step."""
    return {line["step"]: line["train/loss"] for line in ended.metrics() if "train/loss" in line}


@pytest.mark.parametrize(("model", "saved", "resumed"), [*cells()])
def test_a_run_goes_on_under_other_axes(
    runner: Callable[..., Ended],
    trained: Callable[..., Ended],
    tmp_path: Path,
    record_property: Callable[[str, object], None],
    model: str,
    saved: str,
    resumed: str,
) -> None:
    whole = begun(trained, model, "single", STEPS)
    run = shutil.copytree(begun(trained, model, saved).run_dir.path, tmp_path / "run")
    ended = runner("resume", str(run), "run.stop_at_step=null", *placed(model, resumed), timeout_s=90)
    found, expected = losses(ended), losses(whole)
    assert found.keys() == expected.keys()
    ranks = [LAYOUTS[model][one][0] for one in (saved, resumed)]
    difference = max(abs(found[step] - expected[step]) for step in range(SAVED_AT + 1, STEPS + 1))
    record_property("interchange", [saved, ranks[0], resumed, ranks[1], difference])
    assert list(found.values()) == pytest.approx(list(expected.values()), rel=2e-6)
    assert_weights(tensors(ended, STEPS), tensors(whole, STEPS))


@pytest.mark.parametrize(("model", "layout"), [*sources()])
def test_a_checkpoint_has_the_names_and_weights_of_one_process(
    trained: Callable[..., Ended], model: str, layout: str
) -> None:
    """Fused weights that the plan cuts (query, key and value) too, in the model's own order."""
    found, expected = (tensors(begun(trained, model, one), SAVED_AT) for one in (layout, "single"))
    assert_weights(found, expected)


def assert_weights(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Sums of fp32 in another order, through up to six steps of AdamW of 1e-3."""
    assert found.keys() == expected.keys()
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, rtol=0, atol=2e-6, msg=name)
