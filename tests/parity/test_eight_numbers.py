"""The gradient accumulation example of Accelerate's documentation, from a recipe: 8 numbers, SGD 0.02, one step.

By hand: d/dw of the mean of (w·x − 2x)² at w = 0 is −4 · mean(x²) = −4 · 204 / 8 = −102, and 0.02 · 102 = 2.04.
"""

from collections.abc import Callable

import pytest

from tests.conftest import Ended
from tests.parity.options import placed, tensors


@pytest.mark.parametrize("loss", ["mean_loss", "sum_loss"])
@pytest.mark.parametrize(("strategy", "ranks"), [("single", 1), ("ddp", 2), ("fsdp", 2)])
@pytest.mark.parametrize("rounds", [1, 4])
def test_the_weight_is_2_04_with_accumulation_and_without(
    runner: Callable[..., Ended], strategy: str, ranks: int, rounds: int, loss: str
) -> None:
    options = [*placed(strategy, ranks), f"batch.micro_items={8 // ranks // rounds}"]
    ended = runner("train", "eight", f"loss._target_=user_hooks.eight.{loss}", *options)
    assert f"{tensors(ended, 1)['model.weight'].item():.5f}" == "2.04000"
    assert ended.metrics()[-1]["train/grad_norm"] == pytest.approx(102, rel=1e-6)
