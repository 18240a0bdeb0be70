"""Experts of another library's models: transformers' own forward computes them, and only names are needed."""

from pathlib import Path
from typing import Any

import pytest
import torch

from runner.losses import own_causal_loss
from runner.protocols import MicroBatch, StepBatches
from runner.strategy.parallel import Parallel
from runner.strategy.parallel.expert_modules import expert_faults
from runner.strategy.single import Single
from runner.world.solo import SoloWorld
from tests.strategy.parallel.small_mixture import mean, prepare
from tests.strategy.ranks import on_ranks

transformers = pytest.importorskip("transformers")
IDS = torch.randint(0, 32, (4, 7), generator=torch.Generator().manual_seed(0))
PATTERN = "model.layers.*.mlp.experts"


def seeded_mixtral(*, lopsided: bool = False) -> Any:
    """Two layers of four experts; if lopsided, all tokens go to the first two."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "vocab_size": 32}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2}
    config = transformers.MixtralConfig(**sizes, **heads, num_local_experts=4, max_position_embeddings=16)
    model = transformers.MixtralForCausalLM(config)
    if lopsided:
        for layer in model.model.layers:
            torch.nn.init.zeros_(layer.mlp.gate.weight)
    return model


def lopsided_mixtral() -> Any:
    return seeded_mixtral(lopsided=True)


def loss(model: Any, batch: Any) -> Any:
    return own_causal_loss(model, {"input_ids": batch, "labels": batch})


def losses(world: Any, part: Any, build: Any) -> Any:
    """Loss and gradient norm of three steps of two micro-batches."""
    trainable = prepare(world, part, build=build, loss=loss)
    found = []
    data = world.along(*world.axes.data)
    parts = IDS.chunk(2 * data.size)[data.rank :: data.size]
    for _ in range(3):
        step = trainable.forward_backward(StepBatches([MicroBatch(ids, len(ids)) for ids in parts], len(IDS)))
        found += [mean(world, step.losses), trainable.update(measure=True).grad_norm.item()]
    return found


def twice(world: Any, part: Any) -> Any:
    return losses(world, part, seeded_mixtral), losses(world, part, lopsided_mixtral)


@pytest.mark.parametrize("context", [1, 2])
def test_mixtral_with_half_of_its_experts_on_each_rank_has_the_losses_of_one_process(
    context: int, tmp_path: Path
) -> None:
    seeded_mixtral()  # imports what the ranks then have
    alone = twice(SoloWorld(torch.device("cpu")), Single())
    part = Parallel(expert=2, context=context, expert_modules=[PATTERN])
    ranks = 2 * context
    for found in on_ranks(ranks, twice, part, axes=part.axes(ranks), scratch=tmp_path):
        for one, expected in zip(found, alone, strict=True):
            torch.testing.assert_close(one, expected, rtol=0, atol=1e-6)  # fp32 sums in another order


def test_without_a_pattern_the_fault_names_the_modules_that_hold_experts() -> None:
    (fault,) = expert_faults(seeded_mixtral(), [], ranks=2, shards=1)
    assert fault.message.endswith(f"Name its modules with stacked weights: {PATTERN}.")
    assert list(expert_faults(seeded_mixtral(), [PATTERN], ranks=2, shards=1)) == []
