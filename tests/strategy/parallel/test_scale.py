"""A mesh of 4,096 ranks on paper: torch's fake process groups, and a model without storage."""

import math
import multiprocessing
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore

from runner.protocols import Axis
from runner.strategy.fsdp.settings import ShardSettings
from runner.strategy.parallel import Parallel
from runner.world.rehearsal import RehearsalWorld
from tests.strategy.parallel.small_gpt import GPT
from tests.strategy.ranks import builder
from user_hooks.pydoc_lm import build_model

RANKS, REPLICATE, SHARD, CONTEXT, TENSOR = 4096, 8, 8, 4, 16
SHARERS = SHARD * CONTEXT
WIDTH, DEPTH = 4096, 2
PART = Parallel(
    replicate=REPLICATE,
    shard="auto",
    context=CONTEXT,
    tensor=TENSOR,
    tensor_plan=GPT.plan,
    shards=ShardSettings(wrap_classes=["Block"], sync_buffers=False),
)
SPLIT = {
    "embedding.weight": 0,
    "query_key_value.weight": 0,
    "query_key_value.bias": 0,
    "attention_out.weight": 1,
    "feed_forward.0.weight": 0,
    "feed_forward.0.bias": 0,
    "feed_forward.2.weight": 1,
    "head.weight": 0,
}
"""The dimension that tensor ranks split, by the end of a parameter's name; all others are whole."""


def seen_by(rank: int) -> dict[str, Any]:
    """What one of the ranks has: its coordinates, and the shape of each parameter."""
    dist.init_process_group("fake", rank=rank, world_size=RANKS, store=FakeStore())
    axes = PART.axes(RANKS)
    world = RehearsalWorld(torch.device("cpu"), rank=rank, size=RANKS, local_rank=rank % 8, axes=axes)
    built = builder(build=wide, optimizer=torch.optim.SGD, loss=lambda model, batch: model(batch).sum())
    with torch.device("meta"):
        placed = PART.place(built, world)
    mesh = world.mesh()
    assert mesh.mesh.tolist() == torch.arange(RANKS).reshape(axes.sizes).tolist()
    model: Any = placed.models["model"]
    return {
        "at": {str(name): mesh.get_local_rank(str(name)) for name in axes.names},
        "shapes": {name: tuple(parameter.to_local().shape) for name, parameter in model.named_parameters()},
        "whole": {name: tuple(parameter.shape) for name, parameter in model.named_parameters()},
    }


def wide() -> Any:
    with torch.device("meta"):
        return build_model(width=WIDTH, depth=DEPTH, heads=32)


def expected(name: str, whole: tuple[int, ...], sharer: int, tensor: int) -> tuple[int, ...]:
    """First split among tensor ranks, which must be even; then its rows among shards × context, the last ones fewer."""
    shape = list(whole)
    for end, dim in SPLIT.items():
        if name.endswith(end):
            shape[dim] //= TENSOR
    rows = -(-shape[0] // SHARERS)
    shape[0] = max(min(rows, shape[0] - sharer * rows), 0)
    return tuple(shape)


@pytest.mark.exhaustive
def test_4096_ranks_have_their_places_and_shapes() -> None:
    axes = PART.axes(RANKS)
    assert dict(zip(axes.names, axes.sizes, strict=True)) == {
        Axis.REPLICATE: REPLICATE,
        Axis.SHARD: SHARD,
        Axis.CONTEXT: CONTEXT,
        Axis.TENSOR: TENSOR,
    }
    assert axes.data_ranks == REPLICATE * SHARD
    with multiprocessing.get_context("fork").Pool(2, maxtasksperchild=1) as pool:
        ranks = [0, 1, 15, 16, 511, 512, 2048, 4095]
        found = dict(zip(ranks, pool.map(seen_by, ranks, chunksize=1), strict=True))
    for rank, seen in found.items():
        replica, rest = divmod(rank, SHARERS * TENSOR)
        sharer, tensor = divmod(rest, TENSOR)
        shard, context = divmod(sharer, CONTEXT)
        assert seen["at"] == {"replicate": replica, "shard": shard, "context": context, "tensor": tensor}
        for name, whole in seen["whole"].items():
            assert seen["shapes"][name] == expected(name, whole, sharer, tensor), (rank, name)
    for name, whole in found[0]["whole"].items():
        held = sum(
            math.prod(expected(name, whole, sharer, tensor)) for sharer in range(SHARERS) for tensor in range(TENSOR)
        )
        copies = 1 if any(map(name.endswith, SPLIT)) else TENSOR
        assert held == copies * math.prod(whole), f"all parts of {name} are not the whole"
