"""What each option of the group says of itself, and what it refuses."""

from collections import OrderedDict
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from runner.hardware.cpu import CPU
from runner.precision.bf16 import BF16
from runner.precision.bf16_pure import BF16Pure
from runner.precision.casting import to_float32
from runner.precision.fp16 import FP16
from runner.precision.fp32 import FP32


class Pair(NamedTuple):
    one: torch.Tensor
    other: object


class Output(OrderedDict[str, Any]):
    """As transformers' ModelOutput: fields by keyword."""


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"min_scale": 0.0}, r"min_scale=0.0 must be positive"),
        ({"init_scale": 1e-4}, r"init_scale=0.0001 must be at least min_scale=0.001"),
        ({"growth_factor": 1.0}, r"growth_factor=1.0 must be more than 1. Use 2.0"),
        ({"backoff_factor": 1.0}, r"backoff_factor=1.0 must lie between 0 and 1. Use 0.5"),
        ({"growth_interval": 0}, r"growth_interval=0 must be at least 1 step"),
    ],
)
def test_a_scale_that_cannot_work_is_refused(values: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FP16(**values)


@given(overflows=st.lists(st.booleans(), max_size=60), interval=st.integers(1, 4))
@settings(deadline=None)
def test_the_scale_moves_as_that_of_torch(overflows: Any, interval: Any) -> None:
    ours = FP16(growth_interval=interval, min_scale=1e-30, growth_factor=3.0, backoff_factor=0.25).scaler()
    theirs = torch.amp.GradScaler("cpu", growth_interval=interval, growth_factor=3.0, backoff_factor=0.25)
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=0.0)
    for overflow in overflows:
        parameter.grad = torch.full((1,), torch.inf if overflow else 1.0)
        theirs.scale(torch.zeros(1))
        theirs.step(optimizer)
        theirs.update()
        _, finite = ours.unscale([torch.full((1,), torch.inf if overflow else 1.0)], 1.0, lambda found: found)
        assert finite is not overflow
        assert ours.record()["loss_scale"] == pytest.approx(theirs.get_scale(), rel=1e-6)  # theirs is a float32
    assert ours.record()["skipped_steps"] == sum(overflows)


def test_a_scaler_continues_from_its_state_and_begins_afresh_from_none() -> None:
    ours, other = FP16(growth_interval=2).scaler(), FP16(growth_interval=2).scaler()
    for value in (torch.inf, 1.0):
        ours.unscale([torch.full((1,), value)], 1.0, lambda found: found)
    other.load_state_dict({})
    assert other.scale == 65536.0
    other.load_state_dict(ours.state_dict())
    for scaler in (ours, other):
        scaler.unscale([torch.ones(1)], 1.0, lambda found: found)
        assert scaler.state_dict() == {"scale": 65536.0, "steps_in_range": 0, "skipped": 1}


def test_gradients_of_several_types_are_unscaled_and_searched() -> None:
    scaler = FP16(init_scale=2.0).scaler()
    gradients = [torch.full((2,), 4.0), torch.full((2,), 4.0, dtype=torch.bfloat16)]
    assert scaler.unscale(gradients, 1.0, lambda found: found) == (1.0, True)
    assert [gradient.tolist() for gradient in gradients] == [[2.0, 2.0], [2.0, 2.0]]
    gradients[1][0] = torch.nan
    assert scaler.unscale(gradients, 1.0, lambda found: found) == (1.0, False)


def test_a_rank_without_gradients_hears_of_the_others() -> None:
    assert FP16().scaler().unscale([], 1.0, lambda found: found + 1) == (1.0, False)


def test_what_is_not_scaled_costs_nothing() -> None:
    for precision in (FP32(), BF16(), FP16(scale_loss=False)):
        scaler = precision.scaler()
        assert (scaler.scales, scaler.scale, scaler.state_dict(), scaler.record()) == (False, 1.0, {}, {})
        assert scaler.unscale([], 0.5, lambda found: found) == (0.5, True)


@pytest.mark.parametrize("precision", [BF16, FP16])
def test_a_hook_gets_float32_from_the_model_under_autocast(precision: Any) -> None:
    model, narrow = nn.Linear(2, 2), nn.Linear(2, 2)
    precision().convert(model, CPU())
    precision(float32_outputs=False).convert(narrow, CPU())
    with precision().autocast("cpu"):
        assert model(torch.ones(1, 2)).dtype == torch.float32
        assert narrow(torch.ones(1, 2)).dtype == precision().dtypes.param
    with precision(enabled=False).autocast("cpu"):
        assert narrow(torch.ones(1, 2)).dtype == torch.float32


def test_only_narrow_tensors_are_widened_and_containers_keep_their_kind() -> None:
    narrow, count = torch.ones(1, dtype=torch.bfloat16), torch.ones(1, dtype=torch.int64)
    value = {"a": [narrow, (narrow, None)], "b": Pair(narrow, count), "c": Output(logits=narrow), "d": "text"}
    wide = to_float32(value)
    assert wide["a"][0].dtype == wide["a"][1][0].dtype == torch.float32
    assert isinstance(wide["b"], Pair)
    assert (wide["b"].one.dtype, wide["b"].other) == (torch.float32, count)
    assert isinstance(wide["c"], Output)
    assert (wide["c"]["logits"].dtype, wide["d"]) == (torch.float32, "text")


def test_pure_bfloat16_narrows_weights_and_floating_inputs_only() -> None:
    class Looked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(4, 2)
            self.norm = nn.LayerNorm(2)

        def forward(self, indices: Any, scale: Any) -> Any:
            assert scale.dtype == torch.bfloat16
            return self.norm(self.table(indices) * scale)

    model = Looked()
    BF16Pure(enabled=False).convert(model, CPU())
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert model(torch.tensor([1, 2]), scale=torch.ones(1)).dtype == torch.float32


@pytest.mark.parametrize(("part", "narrow"), [(BF16, torch.bfloat16), (FP16, torch.float16)])
def test_autocast_does_as_its_keys_say(part: Any, narrow: Any) -> None:
    x = torch.ones(2, 2)
    with part().autocast("cpu"):
        assert (x @ x).dtype is narrow
        assert torch.is_autocast_cache_enabled()
    with part(enabled=False).autocast("cpu"):
        assert (x @ x).dtype is torch.float32
    with part(cache=False).autocast("cpu"):
        assert (x @ x).dtype is narrow
        assert not torch.is_autocast_cache_enabled()
