"""Small language models for the axes of strategy=parallel: user_hooks' GPTs, and transformers' GPT-2."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.nn import Module

from runner.losses import own_causal_loss
from runner.optimizer.sgd import SGD
from runner.protocols import Clip, MicroBatch, StepBatches
from runner.storage.names import to_names
from runner.strategy.single import Single
from runner.world.solo import SoloWorld
from tests.strategy.ranks import builder
from user_hooks import moe_pydoc
from user_hooks.pydoc_lm import build_model, compute_loss, pad

CPU = torch.device("cpu")
LENGTHS = (9, 4, 12, 7, 5, 12, 3, 8, 6, 11, 12, 2)
"""Bytes of each window, so that micro-batches have unequal counts and lengths that no number of ranks divides."""


SIZES = {
    "vocab_size": 256,
    "max_position_embeddings": 16,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
"""Of transformers' models."""


class Case(NamedTuple):
    """A model, its loss hook and how a batch is made of windows."""

    build: Callable[[], Module]
    loss: Callable[[Module, Any], Any]
    collate: Callable[[list[Tensor]], Any]
    plan: dict[str, str]


def windows() -> list[Tensor]:
    """Windows of unequal length, of bytes other than the padding's."""
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(1, 256, (length + 1,), generator=generator, dtype=torch.uint8) for length in LENGTHS]


def seeded_gpt(*, depth: int = 2) -> Module:
    """Blocks of four heads."""
    torch.manual_seed(0)
    return build_model(width=16, depth=depth, heads=4)


def seeded_gpt2(*, depth: int = 2) -> Module:
    """transformers' GPT-2: weights [inputs, outputs], and an embedding that is the head's weight as well."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    return GPT2LMHeadModel(GPT2Config(vocab_size=256, n_positions=16, n_embd=16, n_layer=depth, n_head=4, **dropout))


def seeded_llama(*, depth: int = 2, **keys: Any) -> Module:
    """transformers' Llama: defines its position embeddings, which have no weights, after the blocks that get them."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SIZES | keys, num_hidden_layers=depth))


def seeded_mixtral() -> Module:
    """transformers' Mixtral, whose blocks have four experts."""
    from transformers import MixtralConfig, MixtralForCausalLM

    torch.manual_seed(0)
    return MixtralForCausalLM(MixtralConfig(**SIZES, num_hidden_layers=2, num_local_experts=4))


def seeded_moe() -> Module:
    """user_hooks.moe_pydoc's GPT, whose blocks have four experts."""
    torch.manual_seed(0)
    return moe_pydoc.build_model(width=16, depth=2, heads=4, hidden=16, experts=4, top_k=2)


def labelled(batch: list[Tensor]) -> dict[str, Tensor]:
    """The keyword arguments of GPT-2: inputs, and labels without the padding."""
    rows = pad(batch)
    return {"input_ids": rows, "labels": rows.masked_fill(rows == 0, -100)}


GPT = Case(
    seeded_gpt,
    compute_loss,
    pad,
    {
        "embedding": "rowwise",
        "blocks.*.query_key_value": "colwise:3",
        "blocks.*.heads": "divide",
        "blocks.*.attention_out": "rowwise",
        "blocks.*.feed_forward.0": "colwise",
        "blocks.*.feed_forward.2": "rowwise",
        "head": "colwise_gather_output",
    },
)
GPT2 = Case(
    seeded_gpt2,
    own_causal_loss,
    labelled,
    {
        "transformer.wte": "rowwise",
        "transformer.h.*.attn.c_attn": "colwise:3",
        "transformer.h.*.attn.split_size": "divide",
        "transformer.h.*.attn.num_heads": "divide",
        "transformer.h.*.attn.c_proj": "rowwise",
        "transformer.h.*.mlp.c_fc": "colwise",
        "transformer.h.*.mlp.c_proj": "rowwise",
        "lm_head": "colwise_gather_output",
    },
)
LLAMA = Case(
    seeded_llama,
    own_causal_loss,
    labelled,
    {
        "model.embed_tokens": "rowwise",
        "model.layers.*.self_attn.q_proj": "colwise",
        "model.layers.*.self_attn.k_proj": "colwise",
        "model.layers.*.self_attn.v_proj": "colwise",
        "model.layers.*.self_attn.o_proj": "rowwise",
        "model.layers.*.mlp.gate_proj": "colwise",
        "model.layers.*.mlp.up_proj": "colwise",
        "model.layers.*.mlp.down_proj": "rowwise",
        "lm_head": "colwise_gather_output",
    },
)
MIXTRAL = Case(seeded_mixtral, own_causal_loss, labelled, {})
MOE = Case(seeded_moe, partial(moe_pydoc.compute_loss, top_k=2, balance=0.1, router_z=0.01), pad, {})
SEQUENCE = {
    "blocks.*.attention_norm": "sequence",
    "blocks.*.feed_forward_norm": "sequence",
    "norm": "sequence",
    "head": "colwise_loss_parallel",
}
"""What the plan of GPT needs in addition with sequence_parallel."""


def prepare(world: Any, part: Any, case: Case, *, clip: Clip | None = None, precision: Any = None) -> Any:
    """The case, ready to be trained.

    By SGD: a bias of keys has no gradient but rounding, of which Adam would make steps of the full rate.
    """
    optimizer = partial(SGD(lr=0.1, momentum=0.9, weight_decay=0.1).build, items=1)
    given = builder(build=case.build, optimizer=optimizer, loss=case.loss, clip=clip, precision=precision)
    return part.prepare(given, world)


def step_batches(world: Any, case: Case, num_micro_batches: int) -> StepBatches:
    """All windows over the ranks that read different items, and micro-batches."""
    data, items = world.along(*world.axes.data), windows()
    size = len(items) // (data.size * num_micro_batches)
    parts = [items[start : start + size] for start in range(0, len(items), size)][data.rank :: data.size]
    return StepBatches([MicroBatch(case.collate(part), len(part)) for part in parts], len(items))


class Trained(NamedTuple):
    """What some steps have come to, whole."""

    losses: list[float]
    norms: list[float]
    weights: dict[str, Tensor]
    evaluated: float


def train(world: Any, part: Any, case: Case, num_micro_batches: int, clip: Clip | None = None, steps: int = 5) -> Any:
    """Train for some steps, then evaluate."""
    trainable = prepare(world, part, case, clip=clip)
    losses, norms = take_steps(trainable, world, case, num_micro_batches, steps)
    evaluated = of_all(world, trainable.evaluate(step_batches(world, case, num_micro_batches).micro_batches))
    return Trained(losses, norms, whole_weights(trainable, world), evaluated)


def take_steps(trainable: Any, world: Any, case: Case, num_micro_batches: int, steps: int) -> Any:
    """The mean loss and the norm of each step."""
    losses, norms = [], []
    for _ in range(steps):
        result = trainable.forward_backward(step_batches(world, case, num_micro_batches))
        losses.append(of_all(world, result.losses))
        counted = torch.tensor(float(sum(loss.count for loss in result.losses)))
        assert result.count == world.along(*world.axes.loss).sum(counted), "every rank knows the count of the step"
        norms.append(float(trainable.update(measure=True).grad_norm))
    return losses, norms


def of_all(world: Any, losses: Any) -> float:
    """The mean over all ranks that have a part in the loss."""
    total, count = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    for loss in losses:
        total += loss.value.detach() * loss.weight
        count += loss.count
    peers = world.along(*world.axes.loss)
    return float(peers.sum(total) / peers.sum(count))


def whole_weights(trainable: Any, world: Any) -> dict[str, Tensor]:
    """The weights as a checkpoint would hold them."""
    return stored(to_names(trainable.state_dict()), world, "model.")


def stored(tensors: Any, world: Any, prefix: str) -> dict[str, Tensor]:
    """Tensors whole, from the boxes that each rank would write."""
    boxes = []
    for name, tensor in tensors.items():
        if name.startswith(prefix):
            boxes += [(name, tuple(tensor.shape), *one) for one in boxes_of(tensor)]
    found: dict[str, Tensor] = {}
    for name, shape, offsets, values in [box for of_rank in world.gather_objects(boxes) for box in of_rank]:
        whole = found.setdefault(name, torch.full(shape, torch.nan, dtype=values.dtype))
        whole[tuple(slice(at, at + size) for at, size in zip(offsets, values.shape, strict=True))] = values
    return found


def boxes_of(tensor: Any) -> list[Any]:
    """Offsets and values of what this rank holds."""
    from torch.distributed.checkpoint.metadata import MetadataIndex

    if type(tensor) in (Tensor, torch.nn.Parameter):
        return [((0,) * tensor.ndim, tensor.detach().clone())]
    chunks = tensor.__create_chunk_list__()
    index = [MetadataIndex("", chunk.offsets) for chunk in chunks]
    return [(tuple(one.offset), tensor.__get_tensor_shard__(one).detach().clone()) for one in index]


def alone(case: Case, num_micro_batches: int, clip: Clip | None = None, steps: int = 5) -> Trained:
    """The same in one process."""
    trained: Trained = train(SoloWorld(CPU), Single(), case, num_micro_batches, clip, steps)
    return trained


def assert_as_alone(found: Trained, expected: Trained) -> None:
    """Losses within 1e-6; weights within the rounding of fp32 sums in another order."""
    assert found.losses == pytest.approx(expected.losses, rel=1e-6)
    assert found.norms == pytest.approx(expected.norms, rel=1e-5)
    assert found.evaluated == pytest.approx(expected.evaluated, rel=1e-6)
    assert found.weights.keys() == expected.weights.keys()
    for name, weight in expected.weights.items():
        torch.testing.assert_close(found.weights[name], weight, rtol=0, atol=1e-6, msg=name)
