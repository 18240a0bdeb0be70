"""What is wrong with a mesh or a tensor plan is told before launch, with the way out."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from runner.protocols import Axis
from runner.strategy.parallel import Parallel
from runner.strategy.parallel.packed import in_rank_order, model_index
from runner.strategy.parallel.plan_faults import plan_faults
from tests.conftest import Ended
from tests.strategy.parallel.small_gpt import GPT, GPT2, SEQUENCE

# ── The mesh ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_auto_takes_the_ranks_that_are_left() -> None:
    axes = Parallel(tensor=2, replicate=2).axes(8)
    assert dict(zip(axes.names, axes.sizes, strict=True)) == {Axis.REPLICATE: 2, Axis.SHARD: 2, Axis.TENSOR: 2}
    assert axes.data_ranks == 4
    assert axes.loss == (Axis.REPLICATE, Axis.SHARD)


@pytest.mark.parametrize(
    ("sizes", "ranks", "message"),
    [
        (
            {"tensor": 3},
            4,
            "the sizes tensor=3 = 3 do not divide the 4 ranks, so nothing is left for shard. "
            "Use strategy.tensor=4, or hardware.processes=3, or hardware.processes=6.",
        ),
        (
            {"tensor": 2, "shard": 4},
            4,
            r"the sizes shard=4 × tensor=2 = 8 are not the 4 ranks. Use strategy.shard=2, or strategy.tensor=1, or "
            "8 ranks.",
        ),
    ],
)
def test_sizes_that_do_not_multiply_to_the_ranks_are_told_with_those_that_do(
    sizes: Any, ranks: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message.replace(".", r"\.")):
        Parallel(**sizes).axes(ranks)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"tensor": "auto"}, "shard and tensor are auto, but only one axis can take what is left"),
        ({"tensor": 0}, "tensor=0 must be a whole number from 1, or auto"),
        ({"replicate": "all"}, "replicate=all must be a whole number from 1, or auto"),
    ],
)
def test_sizes_that_mean_nothing_are_refused(sizes: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Parallel(**sizes)


# ── The plan ────────────────────────────────────────────────────────────────────────────────────────────────────────


def messages(model: Any, plan: dict[str, str], ranks: int = 2) -> list[str]:
    return [f"{fault.key}: {fault.message}" for fault in plan_faults(model, plan, ranks=ranks)]


def test_good_plans_have_no_faults() -> None:
    assert messages(GPT.build(), GPT.plan) == []
    assert messages(GPT.build(), GPT.plan | SEQUENCE, ranks=4) == []
    assert messages(GPT2.build(), GPT2.plan) == []


def test_the_plan_that_a_model_brings_is_the_default() -> None:
    transformers: Any = pytest.importorskip("transformers")
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "vocab_size": 8}
    config = transformers.LlamaConfig(num_attention_heads=4, num_key_value_heads=2, **small)
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(config)
    assert messages(model, {}) == []
    assert messages(model, {}, ranks=4) == [
        "strategy.tensor_plan: model.layers.*.self_attn.k_proj: its width 8 is 2 heads, which 4 ranks do not divide.",
        "strategy.tensor_plan: model.layers.*.self_attn.v_proj: its width 8 is 2 heads, which 4 ranks do not divide.",
    ]


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        ({}, "strategy.tensor=2 needs a plan, and GPT brings none of its own. Name how each module is split; it has: "),
        (
            {"blocks.*.query_key_valu": "colwise:3"},
            "blocks.*.query_key_valu: the model has no such module. Did you mean blocks.*.query_key_value?",
        ),
        ({"head": "colwize"}, "head: colwize: there is no such style. Did you mean colwise?"),
        ({"head": "rowwise:2"}, "head: rowwise:2: there is no such style."),
        ({"norm": "colwise"}, "norm: colwise splits linear layers and embeddings, but this is a LayerNorm."),
        ({"blocks.*.headz": "divide"}, "blocks.*.headz: no module has a whole number of this name."),
    ],
)
def test_each_fault_names_the_pattern_and_the_way_out(plan: dict[str, str], message: str) -> None:
    found = messages(GPT.build(), plan)
    assert any(message in one for one in found), found


def test_widths_and_heads_must_divide() -> None:
    found = messages(GPT.build(), GPT.plan, ranks=3)
    assert (
        "strategy.tensor_plan: blocks.*.query_key_value: its width 48 is not divisible by strategy.tensor=3 × 3 parts. "
        "It is by 2, 4, 8, 16." in found
    )
    assert "strategy.tensor_plan: blocks.*.heads: 4 is not divisible by strategy.tensor=3." in found


def test_a_tied_weight_is_split_in_one_way() -> None:
    plan = {name: style for name, style in GPT2.plan.items() if name != "lm_head"}
    assert messages(GPT2.build(), plan) == [
        "strategy.tensor_plan: transformer.wte.weight and lm_head.weight are one weight, but the plan splits them in "
        "different ways, or only one. Use rowwise for the embedding and colwise for the head, or neither."
    ]


def test_the_command_tells_all_of_them_before_launch(runner: Callable[..., Ended]) -> None:
    arguments = [
        "hardware=cpu",
        "hardware.processes=2",
        "hardware.oversubscribe=true",
        "+strategy.tensor_plan={top: colwise}",
    ]
    ended = runner("check", "points", "strategy=parallel", "strategy.tensor=2", *arguments, code=2)
    assert "strategy.tensor_plan: top: the model has no such module." in ended.stderr
    ended = runner("check", "points", "strategy=parallel", "strategy.sequence_parallel=true", code=2)
    assert "strategy.sequence_parallel: splits sequences among tensor ranks, but strategy.tensor=1." in ended.stderr


# ── Parts side by side ──────────────────────────────────────────────────────────────────────────────────────────────


@given(parts=st.integers(1, 4), ranks=st.integers(1, 4), unit=st.integers(1, 3), dim=st.integers(0, 1))
def test_rows_in_the_order_of_ranks_know_where_they_stood(parts: int, ranks: int, unit: int, dim: int) -> None:
    size = parts * ranks * unit
    rows = torch.arange(size)
    tensor = torch.stack([rows, rows + size], dim=1 - dim)
    ordered = in_rank_order(tensor, dim=dim, parts=parts, ranks=ranks).select(1 - dim, 0)
    expected = [model_index(at, size=size, parts=parts, ranks=ranks) for at in range(size)]
    assert ordered.tolist() == expected
    for rank, own in enumerate(ordered.chunk(ranks)):
        of_parts = rows.view(parts, ranks, unit)[:, rank]
        assert own.tolist() == of_parts.flatten().tolist()
