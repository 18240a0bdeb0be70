"""One kernel for all parameters, or a loop over them: the same steps. Which one a recipe gets that leaves it open."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import distribute_tensor
from torch.testing._internal.distributed.fake_pg import FakeStore

from runner.errors import SpecError
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
def test_a_fused_optimizer_takes_the_steps_of_a_loop(part: Any) -> None:
    fused, weights = after_steps(part(lr=0.1, fused=True))
    loop, expected = after_steps(part(lr=0.1, fused=False))
    assert [one.defaults["fused"] for one in (fused, loop)] == [True, False]
    for name, tensor in expected.items():
        torch.testing.assert_close(weights[name], tensor, rtol=0, atol=1e-6)


@pytest.mark.parametrize("part", [AdamW, partial(SGD, momentum=0.9)])
def test_it_is_fused_on_the_cpu_in_float32(part: Any) -> None:
    def default_for(**kwargs: Any) -> Any:
        model = nn.Linear(3, 2, **kwargs)
        groups = [{"match": "bias", "lr_factor": 0.1}]
        return part(groups=groups).build(model.named_parameters(), items=8).defaults["fused"]

    assert default_for() is True
    assert default_for(dtype=torch.bfloat16) is None
    assert default_for(dtype=torch.float64) is None
    assert default_for(device="meta") is None


def test_without_momentum_a_kernel_saves_nothing() -> None:
    assert SGD().build(nn.Linear(3, 2).named_parameters(), items=8).defaults["fused"] is None


def test_a_kernel_takes_parameters_of_one_mesh() -> None:
    dist.init_process_group("fake", rank=0, world_size=2, store=FakeStore())
    try:
        meshes = [init_device_mesh("cpu", (2,), mesh_dim_names=(name,)) for name in ("shard", "tensor")]
        parameters = [nn.Parameter(distribute_tensor(torch.ones(4), mesh)) for mesh in (meshes[0], *meshes)]
        named = [*zip("abc", parameters, strict=True), ("d", nn.Parameter(torch.ones(4)))]
        chosen = [AdamW().build(some, items=8).defaults["fused"] for some in (named[:2], named[1:3], named[2:])]
        assert chosen == [True, None, None]
        assert SGD(momentum=0.9).build(named[:2], items=8).defaults["fused"] is None
        for impossible, some in ((AdamW(fused=True), named[2:]), (SGD(fused=True), named[:2])):
            with pytest.raises(SpecError, match=r"optimizer\.fused: true: torch's .* Use null or false"):
                impossible.build(some, items=8)
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_a_recipe_asks_for_it_by_a_key(runner: Callable[..., Ended], name: str) -> None:
    common = ["train", "points", f"optimizer={name}", "clip.norm=0.1"]
    fused, loop = (runner(*common, f"optimizer.fused={value}").metrics() for value in ("true", "false"))
    assert losses(fused) == pytest.approx(losses(loop), rel=1e-5)


def losses(lines: list[dict[str, float]]) -> list[float]:
    """Of each logged step."""
    return [line["train/loss"] for line in lines if "train/loss" in line]
