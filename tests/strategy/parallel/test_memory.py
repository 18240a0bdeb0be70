"""Each rank holds its share of parameters, gradients and optimizer state along every axis, to the byte."""

import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from runner.optimizer.adamw import AdamW
from runner.strategy.fsdp.settings import ShardSettings
from runner.strategy.parallel import Parallel
from tests.strategy.parallel.small_gpt import GPT, GPT2, Case, step_batches
from tests.strategy.parallel.test_scale import SPLIT
from tests.strategy.ranks import builder, model_of, on_ranks

F32 = 4
AXES = ("pipeline", "shard", "context", "tensor")
Place = dict[str, int]
"""Where a rank is along each axis."""


def held(world: Any, part: Parallel, case: Case) -> tuple[Place, list[int]]:
    """Where this rank is, and its bytes of parameters, gradients and AdamW's moments in its second step."""
    given = builder(build=case.build, optimizer=partial(AdamW(lr=0.01).build, items=1), loss=case.loss)
    trainable: Any = part.prepare(given, world)
    (optimizer,) = trainable.optimizers.values()
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for _ in range(2):
        trainable.forward_backward(step_batches(world, case, 2))
        gradients = bytes_of(parameter.grad for parameter in parameters)
        trainable.update(measure=False)
    moments = [moment for of_one in optimizer.state.values() for moment in of_one.values() if moment.ndim]
    mesh = world.mesh()
    place = {axis: mesh.get_local_rank(axis) if axis in mesh.mesh_dim_names else 0 for axis in AXES}
    return place, [bytes_of(model_of(trainable).parameters()), gradients, bytes_of(moments)]


def bytes_of(tensors: Any) -> int:
    """What this rank has of them."""
    local: list[Tensor] = [getattr(tensor, "_local_tensor", tensor) for tensor in tensors]
    return sum(tensor.numel() * tensor.element_size() for tensor in local)


STAGES = {
    "embedding": [0], "blocks.0": [0], "blocks.1": [1], "norm": [1], "head": [1],
    "transformer.wte": [0, 1], "transformer.wpe": [0], "transformer.h.0": [0], "transformer.h.1": [1],
    "transformer.ln_f": [1],
}  # fmt: skip
"""Which of two stages need a module; GPT-2's embedding is also its head."""


def share(name: str, shape: list[int], part: Any, at: Place) -> int:
    """Bytes of a parameter on a rank: of its stage, split among tensor ranks, and by rows among those who share it."""
    if part.pipeline > 1 and not any(name.startswith(f"{one}.") and at["pipeline"] in STAGES[one] for one in STAGES):
        return 0
    for end, dim in SPLIT.items():
        if name.endswith(end):
            shape[dim] //= part.tensor
    sharer = at["shard"] * part.context + at["context"]
    rows = -(-shape[0] // (part.shard * part.context))  # the last ones have fewer
    shape[0] = max(min(rows, shape[0] - sharer * rows), 0)
    return F32 * math.prod(shape)


LAYOUTS = [
    (GPT, {"tensor": 2}),
    (GPT, {"tensor": 2, "shard": 2}),
    (GPT, {"tensor": 2, "shard": 3}),
    (GPT, {"pipeline": 2}),
    (GPT2, {"pipeline": 2}),
    (GPT, {"pipeline": 2, "tensor": 2}),
    (GPT, {"pipeline": 2, "shard": 2}),
    (GPT, {"context": 2}),
    (GPT, {"context": 2, "shard": 2}),
]
EVERYDAY = [0, 6]


@pytest.mark.parametrize(
    ("case", "sizes"),
    [
        pytest.param(*layout, marks=() if number in EVERYDAY else pytest.mark.exhaustive)
        for number, layout in enumerate(LAYOUTS)
    ],
)
def test_each_rank_holds_its_share(case: Case, sizes: dict[str, int], tmp_path: Path) -> None:
    settings: Any = {"shard": 1, "tensor_plan": dict(case.plan), **sizes}
    part = Parallel(**settings, shards=ShardSettings(wrap_classes=["Block"] if case is GPT else []))
    whole = {name: list(parameter.shape) for name, parameter in case.build().named_parameters()}
    ranks = math.prod(sizes.values())
    for at, found in on_ranks(ranks, held, part, case, scratch=tmp_path, axes=part.axes(ranks)):
        own = sum(share(name, list(shape), part, at) for name, shape in whole.items())
        assert found == [own, own, 2 * own], at
