"""Context parallelism takes the steps of one process, whatever models and hooks do with sequences."""

import re
from functools import partial
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from runner import Loss
from runner.config.of_blocks import Compile, Compiled
from runner.errors import HookError
from runner.losses import own_causal_loss
from runner.precision.bf16 import BF16
from runner.protocols import Axis, Clip
from runner.strategy.fsdp.settings import ShardSettings
from runner.strategy.parallel import Parallel
from runner.strategy.parallel.balance import balanced, balanced_rows, in_order
from runner.strategy.parallel.context_blocks import context_faults
from tests.conftest import Ended
from tests.strategy.parallel.small_gpt import (
    GPT,
    GPT2,
    MOE,
    Case,
    alone,
    assert_as_alone,
    labelled,
    prepare,
    step_batches,
    train,
)
from tests.strategy.ranks import model_of, on_ranks
from user_hooks.pydoc_lm import pad

CLIP = Clip(norm=0.1)
UNITS = ShardSettings(wrap_classes=["Block"])
WIDTH, HEADS, LONGEST = 16, 4, 32

# ── One process ─────────────────────────────────────────────────────────────────────────────────────────────────────

TENSOR = {"tensor": 2, "tensor_plan": dict(GPT.plan)}
LAYOUTS = [
    pytest.param(GPT, {"context": 2, "shards": UNITS}, 2, 3, CLIP, id="context, accumulated and clipped"),
    pytest.param(GPT, {"context": 2, "shard": 2}, 4, 3, CLIP, id="context × shard"),
    pytest.param(GPT, {"context": 2, "shard": 1, **TENSOR}, 4, 3, CLIP, id="context × tensor"),
    pytest.param(MOE, {"context": 2, "expert": 2}, 4, 3, CLIP, id="context × expert"),
    pytest.param(MOE, {"context": 2, "pipeline": 2}, 4, 3, CLIP, id="context × pipeline"),
    pytest.param(
        MOE,
        {"context": 2, "pipeline": 2, "expert": 2},
        8,
        3,
        CLIP,
        id="× pipeline × expert",
        marks=pytest.mark.exhaustive,
    ),
    pytest.param(
        GPT, {"context": 2, "pipeline": 2, **TENSOR}, 8, 3, CLIP, id="× pipeline × tensor", marks=pytest.mark.exhaustive
    ),
    pytest.param(GPT2, {"context": 2, "pipeline": 2}, 4, 3, CLIP, id="gpt2 × pipeline", marks=pytest.mark.exhaustive),
    pytest.param(MOE, {"context": 2}, 2, 3, CLIP, id="context, whole experts", marks=pytest.mark.exhaustive),
    pytest.param(
        MOE, {"context": 2, "expert": 2, "shard": 2}, 8, 1, CLIP, id="× expert × shard", marks=pytest.mark.exhaustive
    ),
    pytest.param(GPT2, {"context": 3}, 3, 1, CLIP, id="gpt2: three", marks=pytest.mark.exhaustive),
    pytest.param(GPT, {"context": 4}, 4, 1, Clip(), id="four", marks=pytest.mark.exhaustive),
    pytest.param(
        GPT, {"context": 2, "shard": 1, "replicate": 2}, 4, 3, CLIP, id="× replicate", marks=pytest.mark.exhaustive
    ),
    pytest.param(
        GPT2,
        {"context": 2, "shard": 1, "tensor": 2, "tensor_plan": dict(GPT2.plan)},
        4,
        3,
        CLIP,
        id="gpt2 × tensor",
        marks=pytest.mark.exhaustive,
    ),
]


@pytest.mark.parametrize(("case", "sizes", "ranks", "num_micro_batches", "clip"), LAYOUTS)
def test_steps_are_those_of_one_process(
    case: Case, sizes: Any, ranks: int, num_micro_batches: int, clip: Clip, tmp_path: Path
) -> None:
    part = Parallel(**sizes)
    expected = alone(case, num_micro_batches, clip)
    axes = part.axes(ranks)
    for found in on_ranks(ranks, train, part, case, num_micro_batches, clip, scratch=tmp_path, axes=axes):
        assert_as_alone(found, expected)


class Sequences(nn.Module):
    """A model that does with its sequences what `kind` says."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.embedding = nn.Embedding(256, WIDTH)
        self.position = nn.Parameter(torch.randn(LONGEST, WIDTH) / 10)
        self.blocks = nn.ModuleList(encoder_layer() if kind == "encoder" else Mixing(kind) for _ in range(2))
        self.temperature = nn.Parameter(torch.tensor([0.3]))
        self.head = nn.Linear(WIDTH, 256)

    def forward(self, inputs: Tensor) -> Tensor:
        x = self.embedding(inputs) + self.position[: inputs.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.head(x) * self.temperature.exp()


def encoder_layer() -> nn.Module:
    """torch's own, which reads weights of its output projection without calling it."""
    return nn.TransformerEncoderLayer(WIDTH, HEADS, 2 * WIDTH, dropout=0.0, batch_first=True, norm_first=True)


class Mixing(nn.Module):
    """A norm with a weight of its own; then positions are mixed; and each sequence's mean is added."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.weight = nn.Parameter(torch.ones(WIDTH))
        self.query, self.key, self.value = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.bias = nn.Parameter(torch.randn(LONGEST, LONGEST) / 10)
        self.convolution = nn.Conv1d(WIDTH, WIDTH, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.dropout(x, 1e-12)  # drops nothing
        normed = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * self.weight
        return x + self.mixed(normed) + x.mean(1, keepdim=True)

    def mixed(self, x: Tensor) -> Tensor:
        length = x.shape[1]
        bias = self.bias[:length, :length]
        query, key, value = (project(x) for project in (self.query, self.key, self.value))
        if self.kind == "by hand":
            scores = query @ key.transpose(1, 2) / 4 + bias
            seen = torch.ones(length, length, dtype=torch.bool).tril()
            return scores.masked_fill(~seen, float("-inf")).softmax(-1) @ value
        if self.kind == "learned bias":
            query, key, value = (one.unflatten(-1, (HEADS, -1)).transpose(1, 2) for one in (query, key, value))
            return F.scaled_dot_product_attention(query, key, value, bias).transpose(1, 2).flatten(2)
        return self.convolution(x.transpose(1, 2)).transpose(1, 2)


def mean_loss(model: nn.Module, windows: Tensor) -> Loss:
    """A mean over bytes of unequal number on each rank, a penalty on a weight, a metric, and an output by position."""
    inputs, targets = windows[:, :-1], windows[:, 1:]
    logits = model(inputs)
    count = (targets != 0).sum()
    mean = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=0)
    penalty = 1e-3 * model.get_parameter("temperature").sum()
    metrics = {"accuracy": ((logits.argmax(-1) == targets).sum(), count)}
    return Loss((mean + penalty) * count, count, metrics, outputs={"first": logits[:, 0], "all": logits})


def seeded_sequences(kind: str) -> nn.Module:
    torch.manual_seed(0)
    return Sequences(kind)


def seeded_llama() -> nn.Module:
    """Its positions come as an argument of the blocks, and queries share keys."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    small = {"hidden_size": WIDTH, "intermediate_size": 32, "num_hidden_layers": 2, "vocab_size": 256}
    return LlamaForCausalLM(LlamaConfig(num_attention_heads=HEADS, num_key_value_heads=2, **small))


def masked(batch: list[Tensor]) -> dict[str, Tensor]:
    """With a mask of the padding."""
    arguments = labelled(batch)
    return arguments | {"attention_mask": (arguments["labels"] >= 0).long()}


KINDS = {
    kind: Case(partial(seeded_sequences, kind), mean_loss, pad, {})
    for kind in ("by hand", "learned bias", "convolution", "encoder")
}
FROM_TRANSFORMERS = {
    "gpt2": GPT2,
    "llama": Case(seeded_llama, own_causal_loss, labelled, {}),
    "llama, padding masked": Case(seeded_llama, own_causal_loss, masked, {}),
}


def train_each(world: Any, part: Parallel, cases: dict[str, Case]) -> dict[str, Any]:
    return {kind: train(world, part, case, 3, CLIP, steps=3) for kind, case in cases.items()}


@pytest.mark.parametrize("cases", [KINDS, FROM_TRANSFORMERS], ids=["hand-written", "transformers"])
def test_models_may_do_with_sequences_what_they_like(cases: dict[str, Case], tmp_path: Path) -> None:
    part = Parallel(context=2)
    expected = {kind: alone(case, 3, CLIP, steps=3) for kind, case in cases.items()}
    for found in on_ranks(2, train_each, part, cases, scratch=tmp_path, axes=part.axes(2)):
        for kind, one in expected.items():
            assert_as_alone(found[kind], one)


# ── Attention ───────────────────────────────────────────────────────────────────────────────────────────────────────

LENGTHS = (16, 9, 7, 2)
NUM_HEADS = ((4, 4), (4, 2), (3, 3), (6, 3))
"""Of queries, and of keys and values. Two ranks can divide the first two, and three ranks the last two."""


def attended(world: Any) -> tuple[list[str], list[int]]:
    """Where attention over divided sequences, or its gradient, differs from that over whole ones; and rings taken."""
    from torch.distributed.tensor import DTensor, Shard, distribute_tensor
    from torch.distributed.tensor.experimental._context_parallel import _attention as torch_ring

    from runner.strategy.parallel import ring

    mesh = world.mesh()[Axis.CONTEXT]
    wrong, rings = [], []
    own: Any = torch_ring
    template = own._templated_ring_attention

    def counted(*arguments: Any, **named: Any) -> Any:
        rings.append(1)
        return template(*arguments, **named)

    own._templated_ring_attention = counted
    for length, (heads, key_heads) in product(LENGTHS, NUM_HEADS):
        torch.manual_seed(length)
        query, weight = torch.randn(2, heads, length, 8, requires_grad=True), torch.randn(2, heads, length, 8)
        key, value = (torch.randn(2, key_heads, length, 8, requires_grad=True) for _ in range(2))
        mask = (torch.rand(2, 1, length, length) > 0.3) | torch.eye(length, dtype=torch.bool)
        ways: list[tuple[dict[str, Any], SDPBackend]] = [
            ({"attn_mask": mask}, SDPBackend.FLASH_ATTENTION),
            ({"attn_mask": mask[:, :, :1]}, SDPBackend.FLASH_ATTENTION),
            ({"attn_mask": torch.randn(1, heads, length, length)}, SDPBackend.FLASH_ATTENTION),
            ({"is_causal": False}, SDPBackend.FLASH_ATTENTION),
            ({"is_causal": True}, SDPBackend.MATH),
            ({"is_causal": True}, SDPBackend.FLASH_ATTENTION),
        ]
        for options, kernel in ways:
            named: dict[str, Any] = {"enable_gqa": heads != key_heads, "scale": 0.5, **options}
            whole = F.scaled_dot_product_attention(query, key, value, **named)
            gradients = torch.autograd.grad((whole * weight).sum(), [query, key, value])
            parts: Any = [
                distribute_tensor(one.detach(), mesh, [Shard(2)], src_data_rank=None)
                for one in (query, key, value, weight)
            ]
            of = [one.requires_grad_() for one in parts[:3]]
            with ring.ring_attention(mesh), sdpa_kernel(kernel):
                found = ring.attention(mesh, *of, **named)
                theirs = torch.autograd.grad((found * parts[3]).sum().full_tensor(), of)
            both = zip((found, *theirs), (whole, *gradients), strict=True)
            errors = [float((cast("DTensor", one).full_tensor() - other).detach().abs().max()) for one, other in both]
            if max(errors) > 3e-6:  # sums of fp32 in another order
                wrong.append(f"{length} {options.keys()} {kernel} {heads} {key_heads}: {errors}")
    return wrong, rings


@pytest.mark.parametrize("ranks", [2, pytest.param(3, marks=pytest.mark.exhaustive)])
def test_attention_is_that_over_whole_sequences(ranks: int, tmp_path: Path) -> None:
    axes = Parallel(context=ranks).axes(ranks)
    for wrong, rings in on_ranks(ranks, attended, scratch=tmp_path, axes=axes):
        assert wrong == []
        assert len(rings) == 2 * len(
            LENGTHS
        )  # under a causal mask, where heads do not divide and the kernel has a ring


@given(length=st.integers(1, 60), ranks=st.integers(2, 7))
def test_each_position_is_on_one_rank_and_work_is_balanced(length: int, ranks: int) -> None:
    ordered = [position for rank in range(ranks) for position in in_order(length, ranks, rank)]
    assert ordered == list(range(length))
    of_ranks = [[position for half in balanced(length, ranks, rank) for position in half] for rank in range(ranks)]
    rows = balanced_rows(length, ranks)
    assert sorted(position for own in of_ranks for position in own) == list(range(ranks * rows))
    assert ranks * rows < length + 2 * ranks
    # Under a causal mask a position attends to those before it and to itself.
    assert len({sum(position + 1 for position in own) for own in of_ranks}) == 1


# ── What a rank has ─────────────────────────────────────────────────────────────────────────────────────────────────


def seen(world: Any, part: Parallel, case: Case) -> Any:
    """What layers of the blocks get in a step, and how many parameters this rank has."""
    trainable = prepare(world, part, case, precision=BF16())
    model, shapes = model_of(trainable), []
    model.blocks[0].feed_forward[0].register_forward_pre_hook(lambda _, args: shapes.append(tuple(args[0].shape)))
    model.blocks[1].feed_forward[1].register_forward_pre_hook(lambda _, args: shapes.append(type(args[0]).__name__))
    batches = step_batches(world, case, 1)
    trainable.forward_backward(batches)
    trainable.discard()
    return shapes, sum(parameter.to_local().numel() for parameter in model.parameters())


def test_a_rank_has_its_part_of_activations_and_of_parameters(tmp_path: Path) -> None:
    part = Parallel(context=2, shards=UNITS)
    numel = sum(parameter.numel() for parameter in GPT.build().parameters())
    for shapes, held in on_ranks(2, seen, part, GPT, scratch=tmp_path, axes=part.axes(2)):
        # 12 windows of at most 12 bytes.
        assert shapes == [(12, 6, 16), "DTensor"]
        assert held == numel // 2


# ── Faults ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def undivided(world: Any, part: Parallel) -> str:
    case = Case(lambda: nn.Sequential(nn.Linear(4, 1)), lambda model, batch: model(batch).mean(), torch.stack, {})
    trainable = prepare(world, part, case)
    batches = step_batches(world, case._replace(collate=lambda _: torch.ones(2, 4)), 1)
    try:
        trainable.forward_backward(batches)
    except HookError as error:
        return str(error)
    return ""


def test_a_model_without_sequences_is_told_in_the_first_step(tmp_path: Path) -> None:
    part = Parallel(context=2)
    for message in on_ranks(2, undivided, part, scratch=tmp_path, axes=part.axes(2)):
        assert "the loss hook called no block with an activation [items, length, features]" in message


def test_what_does_not_fit_the_model_is_told_before_launch() -> None:
    assert list(context_faults(GPT.build(), classes=["Block"], plan=GPT.plan)) == []
    assert list(context_faults(GPT.build(), classes=[], plan=None)) == []
    (fault,) = context_faults(nn.Linear(1, 1), classes=[], plan=None)
    assert re.search(r"has no lists of modules\. Name the classes of its blocks in blocks\.classes", fault.message)
    (fault,) = context_faults(GPT.build(), classes=[], plan={"head": "colwise_loss_parallel"})
    assert fault.message.startswith("head: colwise_loss_parallel splits logits that strategy.context has divided")


def test_compiled_blocks_of_experts_are_rejected() -> None:
    spec: Any = SimpleNamespace(world_size=2, compile=Compile(what=Compiled.BLOCKS))
    told = [fault for check in Parallel(context=2).model_checks(spec) for fault in check(MOE.build())]
    assert [fault.message.partition(":")[0] for fault in told] == [
        "blocks does not work with strategy.context and experts"
    ]
    assert list(context_faults(GPT.build(), classes=[], plan=None, compiled=[])) == []


def test_the_command_tells_what_does_not_go_together(runner: Any) -> None:
    arguments = ["hardware=cpu", "hardware.processes=8", "hardware.oversubscribe=true", "compile.what=model"]
    sizes = ["strategy.context=2", "strategy.build=rank_0"]
    ended: Ended = runner(
        "check", "pydoc_lm", "strategy=parallel", "strategy.sequence_parallel=true", *sizes, *arguments, code=2
    )
    for key, rule in {
        "strategy.sequence_parallel": "true divides sequences among tensor ranks, too.",
        "strategy.build": "rank_0 sends weights to shards, but strategy.context shares them as well.",
        "compile.what": "model does not work with strategy.context: torch.compile wants a gradient",
    }.items():
        assert f"{key}: {rule}" in ended.stderr
