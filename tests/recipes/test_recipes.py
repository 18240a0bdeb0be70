"""Each recipe that ships is run to its end and reaches what its header promises."""

from collections.abc import Callable
from typing import Any

import pytest

from tests.conftest import CHECKOUT, Ended

PROMISES = {
    "digits": ("eval/accuracy", 0.98, 1.0),
    "moe_pydoc": ("eval/bits_per_byte", 0.0, 2.4),
    "pydoc_lm": ("eval/bits_per_byte", 0.0, 2.7),
    "pydoc_pairs": ("eval/f1", 0.9, 1.0),
    "clip_digits": ("eval/accuracy", 0.2, 1.0),
    "distill_digits": ("eval/accuracy", 0.97, 1.0),
    "gan_digits": ("eval/loss", 0.0, 3.0),
    "gpt2_pydoc": ("eval/loss", 0.0, 2.7),
}
SLOW = {"gan_digits", "gpt2_pydoc", "moe_pydoc", "pydoc_lm"}


def test_every_recipe_promises_something() -> None:
    assert {path.stem for path in (CHECKOUT / "recipes").glob("*.yaml")} == set(PROMISES)


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "recipe", [pytest.param(name, marks=[pytest.mark.exhaustive] * (name in SLOW)) for name in PROMISES]
)
def test_a_recipe_reaches_what_it_promises(runner: Callable[..., Ended], recipe: Any) -> None:
    metric, least, most = PROMISES[recipe]
    ended = runner("train", recipe, timeout_s=580, env={"HF_HUB_OFFLINE": "1"})
    assert least <= ended.run_dir.read_status()["metrics"][metric] <= most


@pytest.mark.exhaustive  # bf16_pure on one rank does it every day: test_digits_matrix.py
def test_digits_is_accurate_on_two_ranks_in_bf16(runner: Callable[..., Ended]) -> None:
    options = ["strategy=ddp", "hardware.processes=2", "precision=bf16", "run.steps=300"]
    ended = runner("train", "digits", *options, timeout_s=300)
    assert ended.run_dir.read_status()["metrics"]["eval/accuracy"] >= 0.98
