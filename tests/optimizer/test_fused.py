"""One kernel for all parameters, or torch's own choice: the same steps."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from runner.optimizer.adamw import AdamW
from runner.optimizer.sgd import SGD
from tests.conftest import Ended


def after_steps(part: Any) -> tuple[torch.optim.Optimizer, dict[str, torch.Tensor]]:
    """The optimizer, and the weights of a small model after five of its steps."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 2))
    optimizer: torch.optim.Optimizer = part.build(model.named_parameters(), items=8)
    for _ in range(5):
        optimizer.zero_grad()
        model(torch.randn(8, 5)).square().mean().backward()
        optimizer.step()
    return optimizer, model.state_dict()


@pytest.mark.parametrize("part", [AdamW, SGD])
def test_a_fused_optimizer_takes_the_steps_of_the_default(part: Any) -> None:
    fused, weights = after_steps(part(lr=0.1, fused=True))
    default, expected = after_steps(part(lr=0.1))
    assert fused.defaults["fused"] is True
    assert default.defaults["fused"] is None  # torch chooses: foreach on a GPU, a loop on the host
    for name, tensor in expected.items():
        torch.testing.assert_close(weights[name], tensor, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_a_recipe_asks_for_it_by_a_key(runner: Callable[..., Ended], name: str) -> None:
    common = ["train", "points", f"optimizer={name}", "clip.norm=0.1"]
    fused, default = (runner(*common, f"optimizer.fused={value}").metrics() for value in ("true", "null"))
    assert losses(fused) == pytest.approx(losses(default), rel=1e-5)


def losses(lines: list[dict[str, float]]) -> list[float]:
    """Of each logged step."""
    return [line["train/loss"] for line in lines if "train/loss" in line]
