"""precision=fp8 and fp8_te: which layers, emulated or not, and what is refused."""

import importlib.util
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum
from typing import Any

import pytest
import torch
from torch import nn

from runner.errors import ModelError
from runner.hardware.cpu import CPU
from runner.precision.fp8 import FP8, Backend, Level, Recipe
from runner.precision.fp8_layers import Filter
from runner.precision.fp8_te import FP8TransformerEngine
from tests.conftest import Ended
from tests.parity.options import TOWER, placed, tensors

TALL = [*TOWER, "+model.width=16", "optimizer=sgd", "optimizer.lr=0.1"]
has_torchao = pytest.mark.skipif(importlib.util.find_spec("torchao") is None, reason="needs the extra fp8")


def build() -> Any:
    return nn.Sequential(nn.Linear(16, 32), nn.Linear(32, 32), nn.Linear(32, 24), nn.Linear(24, 32), nn.Linear(32, 16))


def skip_reasons(**changes: Any) -> Any:
    rules = {"include": [], "exclude": [], "min_features": 16, "keep_first": True, "keep_last": True}
    with torch.device("meta"):
        return {layer.name: layer.skip_reason for layer in Filter(**{**rules, **changes}).choose(build())}


def test_layers_are_chosen_by_place_shape_and_name_without_values() -> None:
    odd = "are not both multiples of 16"
    kept = {"0": "first layer", "1": "", "2": f"24 × 32 {odd}", "3": f"32 × 24 {odd}", "4": "last layer"}
    assert skip_reasons() == kept
    assert skip_reasons(keep_first=False, keep_last=False) == kept | {"0": "", "4": ""}
    assert skip_reasons(exclude=["1"]) == kept | {"1": "matches exclude pattern 1"}
    assert skip_reasons(include=["[2-9]"])["1"] == "no include pattern matches"
    assert skip_reasons(min_features=33)["1"] == "32 features are fewer than min_features=33"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"backend": Backend.MSAMP},
            "MS-AMP is no longer maintained .* Instead of level O1, use precision=fp8 and, to",
        ),
        (
            {"backend": Backend.MSAMP, "optimization_level": Level.O2},
            "Instead of level O2, use precision=fp8 and strat",
        ),
        ({"backend": Backend.TRANSFORMER_ENGINE}, "is an option of its own. Use precision=fp8_te"),
        (
            {"fsdp_float8_all_gather": True, "recipe": Recipe.ROWWISE},
            "one scale per matrix, but recipe=rowwise. Use recipe=t",
        ),
        ({"min_features": 0}, "min_features=0 must be at least 1"),
    ],
)
def test_what_cannot_work_is_refused_with_a_way_out(values: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FP8(**values)


def test_an_absent_library_and_absent_hardware_are_faults(runner: Callable[..., Ended]) -> None:
    ended = runner("check", "points", "precision=fp8", "precision.emulate=false", code=2)
    assert "precision.emulate: false, but this hardware has no float8" in ended.stderr
    ended = runner("check", "points", "precision=fp8_te", code=2)
    assert "fp8_te needs NVIDIA's TransformerEngine, which is not installed" in ended.stderr
    assert "TransformerEngine does not emulate it. Use precision=fp8 or bf16" in ended.stderr


@has_torchao
def test_check_lists_what_becomes_of_each_layer(runner: Callable[..., Ended]) -> None:
    said = runner("check", *TALL[1:], "precision=fp8", "precision.exclude=['*.narrow']", "--build").stdout
    assert "3 of 8 linear layers in float8" in said
    assert "blocks.0.widen 48 × 16: float8" in said
    assert "blocks.0.narrow 16 × 48: not converted: matches exclude pattern *.narrow" in said
    assert "bottom 16 × 2: not converted: first layer" in said


@has_torchao
def test_check_says_so_where_a_model_cannot_be_built_without_values(runner: Callable[..., Ended]) -> None:
    said = runner(
        "check", "points", "--build", "precision=fp8", "model._target_=user_hooks.points.build_by_value"
    ).stdout
    assert "layers: the model cannot be built without values" in said


@has_torchao
def test_a_model_of_which_nothing_would_be_converted_is_refused() -> None:
    with pytest.raises(
        ModelError, match=r"would convert no layer of this model. Use precision=bf16, or relax the filter:\n0 of 5"
    ):
        FP8(exclude=["*"]).convert(build(), CPU())


@has_torchao
@pytest.mark.parametrize("recipe", Recipe)
def test_a_run_in_emulated_float8_learns_nearly_what_bfloat16_does(runner: Callable[..., Ended], recipe: Any) -> None:
    narrow = runner(*TALL, "precision=fp8", f"precision.recipe={recipe.value}", "run.steps=9")
    assert narrow.stderr.count("float8 is emulated") == 1
    assert "6 of 8 linear layers in float8" in narrow.stderr
    assert "blocks.0.widen 48 × 16: float8" in narrow.stderr
    theirs = tensors(runner(*TALL, "precision=bf16", "run.steps=9"), 9)
    ours = tensors(narrow, 9)
    assert ours.keys() == theirs.keys()
    assert {tensor.dtype for tensor in ours.values()} == {torch.float32}
    assert any(not torch.equal(ours[name], theirs[name]) for name in ours)
    for name, tensor in ours.items():
        # E4M3 keeps 3 bits and E5M2 2: a gradient near 1 is off by 1/8, in each of nine steps of 0.1.
        torch.testing.assert_close(tensor, theirs[name], rtol=0, atol=0.11)


@has_torchao
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_ranks_in_float8_end_near_one(runner: Callable[..., Ended], strategy: str) -> None:
    alone, pair = (runner(*TALL, "precision=fp8", "run.steps=5", *placed(one, 2)) for one in ("single", strategy))
    theirs = tensors(alone, 5)
    for name, tensor in tensors(pair, 5).items():
        if name != "model.seen":
            torch.testing.assert_close(tensor, theirs[name], rtol=0, atol=0.06)  # as above, five steps


@has_torchao
def test_a_float8_run_resumes_bit_by_bit_and_goes_on_in_float32(runner: Callable[..., Ended]) -> None:
    expected = runner(*TALL, "precision=fp8")
    stopped = runner(*TALL, "precision=fp8", "run.stop_at_step=6")
    resumed = runner("resume", str(stopped.run_dir.path))
    assert resumed.metrics() == expected.metrics()
    runner("resume", str(stopped.run_dir.path), "precision=fp32", "run.steps=12")


# ── TransformerEngine, by a stand-in for the library ────────────────────────────────────────────────────────────────


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Any:
    """As much of transformer_engine as is called; records how."""
    calls = types.SimpleNamespace(recipe=None, enabled=[])

    class Linear(nn.Linear):
        def __init__(self, *features: Any, bias: Any, params_dtype: Any) -> None:
            super().__init__(*features, bias=bias, dtype=params_dtype)  # type: ignore[misc]  # two numbers

        def get_extra_state(self) -> Any:
            return torch.zeros(3, dtype=torch.uint8)

    class Norm(nn.LayerNorm):
        def __init__(self, features: Any, eps: Any, params_dtype: Any) -> None:
            super().__init__(features, eps=eps, dtype=params_dtype)

    @contextmanager
    def fp8_autocast(*, enabled: Any, fp8_recipe: Any) -> Iterator[Any]:
        calls.recipe = fp8_recipe
        calls.enabled.append(enabled)
        yield

    package: dict[str, Any] = {
        "transformer_engine": types.ModuleType("transformer_engine"),
        "transformer_engine.pytorch": types.SimpleNamespace(Linear=Linear, LayerNorm=Norm, fp8_autocast=fp8_autocast),
        "transformer_engine.common": types.SimpleNamespace(
            recipe=types.SimpleNamespace(DelayedScaling=dict, Format=Enum("Format", ["HYBRID", "E4M3"]))
        ),
    }
    package["transformer_engine"].pytorch = package["transformer_engine.pytorch"]
    for name, module in package.items():
        monkeypatch.setitem(sys.modules, name, module)
    return calls


def test_transformer_engine_gets_every_key_and_the_models_own_parameters(engine: Any) -> None:
    precision = FP8TransformerEngine(margin=1, amax_history_len=16, override_linear_precision=[False, False, True])
    model = nn.Sequential(nn.Linear(16, 32), nn.LayerNorm(32), nn.Linear(32, 32), nn.Linear(32, 16))
    before = dict(model.named_parameters())
    precision.convert(model, CPU())
    after = dict(model.named_parameters())
    assert before.keys() == after.keys() == model.state_dict().keys()
    assert all(after[name] is before[name] for name in before)
    assert [type(module).__name__ for module in model] == ["Linear", "Norm", "Linear", "Linear"]
    assert [type(module) is nn.Linear for module in model] == [True, False, False, True]
    context = precision.autocast("cpu")
    with context:
        model(torch.ones(1, 16))
    with torch.no_grad(), context:
        model(torch.ones(1, 16))
    assert engine.enabled == [True, False]
    assert {key: getattr(value, "name", value) for key, value in engine.recipe.items()} == {
        "margin": 1,
        "interval": 1,
        "fp8_format": "HYBRID",
        "amax_history_len": 16,
        "amax_compute_algo": "max",
        "override_linear_precision": (False, False, True),
    }


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"override_linear_precision": [True]}, r"override_linear_precision=\[True\] must be 3 booleans"),
        ({"interval": 0}, "interval=0 must be at least 1"),
        ({"amax_history_len": 0}, "amax_history_len=0 must be at least 1"),
    ],
)
def test_a_recipe_that_cannot_be_is_refused(values: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FP8TransformerEngine(**values)
