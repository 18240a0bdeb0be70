"""Tensor parallelism takes the steps of one process, and keeps the model's own weights in checkpoints."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from runner.protocols import Axis, Clip
from runner.storage.names import to_names
from runner.strategy.fsdp import FSDP
from runner.strategy.fsdp.settings import ShardSettings
from runner.strategy.parallel import Parallel
from tests.strategy.parallel.small_gpt import (
    GPT,
    GPT2,
    SEQUENCE,
    Case,
    alone,
    assert_as_alone,
    prepare,
    stored,
    take_steps,
    train,
)
from tests.strategy.ranks import model_of, on_ranks
from tests.strategy.small_tower import X, micro_batches_of, seeded_model
from tests.strategy.small_tower import prepare as prepare_tower

CLIP = Clip(norm=0.1)
UNITS = ShardSettings(wrap_classes=["Block"])
HEAD_SPLIT = GPT._replace(plan=GPT.plan | SEQUENCE)


def parallel(case: Case, **sizes: Any) -> Parallel:
    """The strategy with the case's plan."""
    return Parallel(tensor_plan=dict(case.plan), **sizes)


LAYOUTS = [
    pytest.param(GPT, {"tensor": 2, "shard": 1}, 2, 1, Clip(), id="tensor"),
    pytest.param(GPT, {"tensor": 2, "shard": 1}, 2, 3, CLIP, id="tensor, accumulated and clipped"),
    pytest.param(GPT2, {"tensor": 2, "shard": 1}, 2, 3, CLIP, id="gpt2: transposed, tied"),
    pytest.param(HEAD_SPLIT, {"tensor": 2, "sequence_parallel": True}, 2, 3, CLIP, id="sequence and loss in parallel"),
    pytest.param(GPT, {"tensor": 2, "shard": 2, "shards": UNITS}, 4, 3, CLIP, id="tensor × shard"),
    pytest.param(
        GPT,
        {"tensor": 2, "shard": 1, "replicate": 2},
        4,
        3,
        CLIP,
        id="tensor × replicate",
        marks=pytest.mark.exhaustive,
    ),
    pytest.param(
        HEAD_SPLIT,
        {"tensor": 2, "shard": 2, "sequence_parallel": True},
        4,
        1,
        CLIP,
        id="sequence × shard",
        marks=pytest.mark.exhaustive,
    ),
    pytest.param(GPT, {"tensor": 4, "shard": 1}, 4, 1, Clip(), id="a head a rank", marks=pytest.mark.exhaustive),
]


@pytest.mark.parametrize(("case", "sizes", "ranks", "num_micro_batches", "clip"), LAYOUTS)
def test_every_layout_takes_the_steps_of_one_process(
    case: Case, sizes: Any, ranks: int, num_micro_batches: int, clip: Clip, tmp_path: Path
) -> None:
    expected = alone(case, num_micro_batches, clip)
    part = parallel(case, **sizes)
    for found in on_ranks(ranks, train, part, case, num_micro_batches, clip, scratch=tmp_path, axes=part.axes(ranks)):
        assert_as_alone(found, expected)


def test_shards_alone_are_what_fsdp_does_to_the_bit(tmp_path: Path) -> None:
    by_fsdp = on_ranks(2, train, FSDP(settings=UNITS), GPT, 2, CLIP, scratch=tmp_path / "fsdp")
    part = Parallel(shard=2, shards=UNITS)
    found = on_ranks(2, train, part, GPT, 2, CLIP, scratch=tmp_path / "parallel", axes=part.axes(2))
    for one, expected in zip(found, by_fsdp, strict=True):
        assert one[:2] == expected[:2]
        assert all(torch.equal(one.weights[name], weight) for name, weight in expected.weights.items())


def by_hand(world: Any) -> Any:
    """A tower whose blocks are split by torch's own functions in a plain loop: losses, and the local weights."""
    model = seeded_model()
    mesh = world.mesh()[Axis.TENSOR]
    for block in model.blocks:
        parallelize_module(block, mesh, {"widen": ColwiseParallel(), "narrow": RowwiseParallel()})
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    losses = []
    for _ in range(3):
        total = model(X).square().sum()
        (total / len(X)).backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(total.item())
    return losses, local(model)


def by_strategy(world: Any, part: Parallel) -> Any:
    """The same by the strategy."""
    trainable = prepare_tower(world, part)
    losses = []
    for _ in range(3):
        losses.append(trainable.forward_backward(micro_batches_of_all(world)).losses[0].value.item())
        trainable.update(measure=False)
    return losses, local(model_of(trainable))


def micro_batches_of_all(world: Any) -> Any:
    """All items on every rank: tensor ranks read the same."""
    return micro_batches_of(world.along(*world.axes.data), 1)


def local(model: nn.Module) -> Any:
    """What this rank holds of each parameter."""
    parameters = model.named_parameters()
    return {name: getattr(one, "_local_tensor", one).detach().clone() for name, one in parameters}


def test_a_hand_written_loop_over_torchs_styles_gives_the_same_bits(tmp_path: Path) -> None:
    part = Parallel(tensor=2, tensor_plan={"blocks.*.widen": "colwise", "blocks.*.narrow": "rowwise"})
    axes = part.axes(2)
    expected = on_ranks(2, by_hand, scratch=tmp_path / "hand", axes=axes)
    for rank, (losses, weights) in enumerate(on_ranks(2, by_strategy, part, scratch=tmp_path / "part", axes=axes)):
        assert losses == expected[rank][0]
        for name, weight in weights.items():
            assert torch.equal(weight, expected[rank][1][name]), name


def held(world: Any, part: Parallel, case: Case) -> Any:
    """Elements of parameters, gradients and optimizer state on this rank; and the optimizer's state, whole."""
    trainable = prepare(world, part, case)
    take_steps(trainable, world, case, 1, 1)
    model = model_of(trainable)
    state = to_names(trainable.state_dict())
    moments = [tensor for name, tensor in state.items() if name.endswith(".momentum_buffer")]
    numel = [
        sum(getattr(one, "to_local", lambda one=one: one)().numel() for one in tensors)
        for tensors in (list(model.parameters()), moments)
    ]
    return numel, stored(state, world, "optimizer.")


def test_each_rank_holds_its_part_of_split_weights_and_of_their_optimizer_state(tmp_path: Path) -> None:
    """By hand: of the GPT of width 16, everything is halved but norms and the biases of what is split by inputs."""
    width, depth, vocabulary = 16, 2, 256
    whole = 2 * 2 * width + 2 * width  # norms of a block, biases behind its two sums
    split = 3 * width * (width + 1) + width * width + 4 * width * (width + 1) + 4 * width * width
    expected = depth * (whole + split // 2) + 2 * vocabulary * width // 2 + 2 * width
    part = parallel(GPT, tensor=2)
    trained = alone(GPT, 1)
    for numel, state in on_ranks(2, held, part, GPT, scratch=tmp_path, axes=part.axes(2)):
        assert numel == [expected, expected]
        assert {name.split(".", 1)[1].rsplit(".", 1)[0] for name in state} >= {
            name.removeprefix("model.") for name in trained.weights
        }
