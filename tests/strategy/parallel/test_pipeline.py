"""A pipeline takes the steps of one process, with the loss hook unchanged, and tells what it cannot cut."""

import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage, Schedule1F1B

from runner.protocols import Axis, Clip, MicroBatch, StepBatches
from runner.strategy.fsdp.settings import ShardSettings
from runner.strategy.parallel import Parallel
from runner.strategy.parallel.schedule import PipelineSettings, Schedule
from tests.strategy.parallel.small_gpt import (
    CPU,
    GPT,
    GPT2,
    LLAMA,
    MIXTRAL,
    SEQUENCE,
    Case,
    alone,
    assert_as_alone,
    prepare,
    seeded_gpt,
    seeded_gpt2,
    seeded_llama,
    train,
    windows,
)
from tests.strategy.ranks import model_of, on_ranks
from user_hooks.pydoc_lm import BOUNDARY, pad

CLIP = Clip(norm=0.5)
UNITS = ShardSettings(wrap_classes=["Block"])


DEEP = GPT._replace(build=partial(seeded_gpt, depth=4))
DEEP_GPT2 = GPT2._replace(build=partial(seeded_gpt2, depth=4))
DEEP_LLAMA = LLAMA._replace(build=partial(seeded_llama, depth=4))
"""Four blocks, for two stages on each of two ranks."""
DEEPER = GPT._replace(build=partial(seeded_gpt, depth=8))


def pipeline(case: Case, schedule: str = "1f1b", stages_per_rank: int = 1, **keys: Any) -> Parallel:
    """The strategy with two pipeline ranks if the keys say nothing else, and the case's tensor plan.

    Stages are built without the weights of the others, which the weights at the end would show to be other ones.
    """
    settings = PipelineSettings(
        schedule=Schedule(schedule), stages_per_rank=stages_per_rank, build_own_stages=schedule != "1f1b"
    )
    return Parallel(**{"pipeline": 2, "pipelining": settings, "tensor_plan": dict(case.plan)} | keys)


def exhaustive(*values: Any) -> Any:
    """A row of a table that only the exhaustive matrices run."""
    return pytest.param(*values, marks=pytest.mark.exhaustive)


ROPE = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
GROWING_LLAMA = LLAMA._replace(build=partial(seeded_llama, rope_parameters=ROPE, max_position_embeddings=8))
"""Gives a buffer new values when a sequence is longer than any before."""
SEQUENTIAL = GPT._replace(plan=GPT.plan | SEQUENCE)
LAYOUTS = [
    (GPT, {"shard": 1}, 1, Clip()),
    (GPT2, {"shard": 1}, 3, CLIP),
    (GPT, {"shard": 1, "tensor": 2}, 3, CLIP),
    (GPT2, {"shard": 2}, 3, CLIP),
    (LLAMA, {"shard": 1, "tensor": 2}, 3, CLIP),
    (MIXTRAL, {"shard": 1}, 3, CLIP),
    (SEQUENTIAL, {"shard": 1, "tensor": 2, "sequence_parallel": True}, 3, CLIP),
    exhaustive(GPT, {"shard": 1}, 3, CLIP),
    exhaustive(GPT, {"shard": 2, "shards": UNITS}, 3, CLIP),
    exhaustive(GPT, {"shard": 2, "shards": UNITS}, 1, Clip()),
    exhaustive(GPT, {"shard": 1, "replicate": 2}, 3, CLIP),
    exhaustive(GPT2, {"shard": 1}, 1, Clip()),
    exhaustive(GPT2, {"shard": 1, "tensor": 2}, 1, Clip()),
    exhaustive(GPT2, {"shard": 1, "tensor": 2}, 3, CLIP),
    exhaustive(GPT2, {"shard": 1, "replicate": 2}, 3, CLIP),
    exhaustive(LLAMA, {"shard": 1}, 3, CLIP),
    exhaustive(LLAMA, {"shard": 2}, 3, CLIP),
    exhaustive(LLAMA, {"shard": 1, "context": 2, "tensor_plan": {}}, 3, CLIP),
    exhaustive(GROWING_LLAMA, {"shard": 1}, 3, CLIP),
]


@pytest.mark.parametrize(("case", "sizes", "num_micro_batches", "clip"), LAYOUTS)
def test_every_layout_takes_the_steps_of_one_process(
    case: Case, sizes: dict[str, Any], num_micro_batches: int, clip: Clip, tmp_path: Path
) -> None:
    part = pipeline(case, "1f1b" if num_micro_batches > 1 else "gpipe", **sizes)
    assert_stages_as_alone(part, case, num_micro_batches, clip, tmp_path, steps=5)


SCHEDULES = [
    (DEEP, "interleaved_1f1b", 2, 6, {"shard": 1}),
    (DEEP_GPT2, "zero_bubble_v", 2, 3, {"shard": 1}),
    (GPT, "zero_bubble", 1, 6, {"shard": 1}),
    (DEEP_LLAMA, "zero_bubble_v", 2, 3, {"shard": 1}),
    exhaustive(DEEP, "gpipe", 2, 3, {"shard": 1}),
    exhaustive(DEEP, "zero_bubble", 2, 6, {"shard": 1}),
    exhaustive(DEEP, "zero_bubble_v", 2, 6, {"shard": 1}),
    exhaustive(DEEP_GPT2, "interleaved_1f1b", 2, 6, {"shard": 1}),
    exhaustive(DEEP, "interleaved_1f1b", 2, 6, {"shard": 2, "shards": UNITS}),
    exhaustive(DEEP, "zero_bubble_v", 2, 6, {"shard": 2, "shards": UNITS}),
    exhaustive(DEEP, "zero_bubble", 1, 6, {"shard": 2, "shards": UNITS}),
    exhaustive(DEEP, "interleaved_1f1b", 2, 3, {"shard": 1, "tensor": 2}),
    exhaustive(DEEP, "zero_bubble", 1, 3, {"shard": 1, "tensor": 2}),
    exhaustive(SEQUENTIAL._replace(build=DEEP.build), "zero_bubble_v", 2, 6, {"tensor": 2, "sequence_parallel": True}),
    exhaustive(DEEP, "1f1b", 1, 6, {"shard": 1, "pipeline": 4}),
    exhaustive(DEEP_GPT2, "1f1b", 1, 12, {"shard": 1, "pipeline": 4}),
    exhaustive(DEEPER, "interleaved_1f1b", 2, 4, {"shard": 1, "pipeline": 4}),
    exhaustive(DEEPER, "zero_bubble_v", 2, 6, {"shard": 1, "pipeline": 4}),
]


@pytest.mark.parametrize(("case", "schedule", "stages_per_rank", "num_micro_batches", "sizes"), SCHEDULES)
def test_every_schedule_takes_the_steps_of_one_process(
    case: Case, schedule: str, stages_per_rank: int, num_micro_batches: int, sizes: dict[str, Any], tmp_path: Path
) -> None:
    part = pipeline(case, schedule, stages_per_rank, **sizes)
    assert_stages_as_alone(part, case, num_micro_batches, CLIP, tmp_path, steps=2)


def assert_stages_as_alone(
    part: Parallel, case: Case, num_micro_batches: int, clip: Clip, scratch: Path, *, steps: int
) -> None:
    """Losses within 1e-6; weights within the rounding of fp32 sums in another order."""
    expected = alone(case, num_micro_batches, clip, steps)
    sizes = (part.pipeline, part.tensor, part.shard, part.replicate, part.context)
    ranks = math.prod(int(size) for size in sizes if size != "auto")
    args = (part, case, num_micro_batches, clip, steps)
    for found in on_ranks(ranks, train, *args, scratch=scratch, axes=part.axes(ranks)):
        assert_as_alone(found, expected)


class FirstHalf(nn.Module):
    """The GPT, cut by hand: up to the second block."""

    def __init__(self, whole: Any) -> None:
        super().__init__()
        self.embedding, self.block = whole.embedding, whole.blocks[0]

    def forward(self, inputs: Tensor) -> Any:
        return self.block(self.embedding(inputs))


class SecondHalf(nn.Module):
    """From there to the logits."""

    def __init__(self, whole: Any) -> None:
        super().__init__()
        self.block, self.norm, self.head = whole.blocks[1], whole.norm, whole.head

    def forward(self, x: Tensor) -> Any:
        return self.head(self.norm(self.block(x)))


MICRO_BATCHES = 3


def rows() -> Tensor:
    """All windows, of the same length in every micro-batch: torch's stage has one shape for all of them."""
    return pad(windows())


def by_hand(world: Any) -> Any:
    """A plain loop over torch's stage and schedule: the losses of each step, and this rank's weights."""
    half = (FirstHalf, SecondHalf)[world.rank](seeded_gpt())
    inputs, targets = rows()[:, :-1], rows()[:, 1:]
    stage = PipelineStage(half, world.rank, 2, CPU, group=world.mesh().get_group(Axis.PIPELINE))

    def summed(logits: Tensor, wanted: Tensor) -> Tensor:
        flat = logits.flatten(0, 1), wanted.flatten()
        return nn.functional.cross_entropy(*flat, ignore_index=BOUNDARY, reduction="sum")

    schedule = Schedule1F1B(stage, MICRO_BATCHES, loss_fn=summed, scale_grads=False)
    optimizer = torch.optim.SGD(half.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1, fused=True)
    found: list[list[float]] = []
    for _ in range(3):
        losses: list[Tensor] = []
        if world.rank == 0:
            schedule.step(inputs)
        else:
            schedule.step(target=targets, losses=losses)
        for parameter in half.parameters():
            assert parameter.grad is not None
            parameter.grad *= 1.0 / (targets != BOUNDARY).sum()
        optimizer.step()
        optimizer.zero_grad()
        found.append([loss.item() for loss in losses])
    return found, [parameter.detach().clone() for parameter in half.parameters()]


def by_strategy(world: Any, part: Parallel) -> Any:
    """The same by the strategy."""
    trainable = prepare(world, part, GPT)
    batches = [MicroBatch(one, len(one)) for one in rows().chunk(MICRO_BATCHES)]
    found = []
    for _ in range(3):
        losses = trainable.forward_backward(StepBatches(batches, len(rows()))).losses
        trainable.update(measure=False)
        found.append([loss.value.item() for loss in losses])
    return found, [parameter.detach().clone() for parameter in model_of(trainable).parameters()]


def test_a_hand_written_loop_over_torchs_pipelining_gives_the_same_losses_and_weights(tmp_path: Path) -> None:
    part = pipeline(GPT, shard=1)
    expected = on_ranks(2, by_hand, scratch=tmp_path / "hand", axes=part.axes(2))
    found = on_ranks(2, by_strategy, part, scratch=tmp_path / "part", axes=part.axes(2))
    for (losses, weights), (losses_by_hand, weights_by_hand) in zip(found, expected, strict=True):
        assert losses == losses_by_hand
        for weight, wanted in zip(weights, weights_by_hand, strict=True):
            assert torch.equal(weight, wanted)
