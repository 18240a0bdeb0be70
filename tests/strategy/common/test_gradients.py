"""The gradients of a step: found finite or not, dropped without a trace, and as large as the parameters are."""

import copy
import importlib.util
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from runner.protocols import MicroBatch, StepBatches, Strategy, Trainable, World
from runner.strategy.common.gradients import all_finite
from runner.strategy.ddp import DDP
from runner.strategy.deepspeed import DeepSpeed
from runner.strategy.fsdp import FSDP
from runner.strategy.single import Single
from tests.strategy.common.test_module_trainable import COUNTS, MODEL, WORLD, X, Y, by_hand_model, prepare, token_loss
from tests.strategy.ranks import model_of, on_ranks

needs_deepspeed = pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="needs the extra deepspeed")
CUT = DeepSpeed(stage=3, param_persistence_threshold=0)
PLACES = [
    pytest.param(Single(), 1, id="single"),
    pytest.param(DDP(), 2, id="ddp"),
    pytest.param(FSDP(), 2, id="fsdp"),
    pytest.param(DeepSpeed(stage=1), 2, id="zero1", marks=[needs_deepspeed, pytest.mark.exhaustive]),
    pytest.param(CUT, 2, id="zero3", marks=needs_deepspeed),
]


def everywhere(num_ranks: int, function: Callable[..., Any], strategy: Strategy, scratch: Path) -> list[Any]:
    """What function(world, strategy) returns on each rank."""
    return [function(WORLD, strategy)] if num_ranks == 1 else on_ranks(num_ranks, function, strategy, scratch=scratch)


def share(world: World) -> StepBatches:
    """This rank's part of the twelve items, in two rounds."""
    length = 12 // world.size
    first = world.rank * length
    halves = [slice(first, first + length // 2), slice(first + length // 2, first + length)]
    return StepBatches([MicroBatch((X[part], Y[part], COUNTS[part]), part.stop - part.start) for part in halves], 12)


def after_discarding(world: World, strategy: Strategy) -> tuple[list[float], float]:
    """The norms of three steps, before two of which another was taken and dropped; and the loss afterwards."""
    trainable = prepare(token_loss, strategy=strategy, world=world)
    norms = []
    for number in range(3):
        if number != 1:
            one_item = MicroBatch((X[:1] * 50, Y[:1] - 50, COUNTS[:1] + 9), 1)
            trainable.forward_backward(StepBatches([one_item] * 2, 2 * world.size))
            trainable.discard()
            assert all(parameter.grad is None for parameter in model_of(trainable).parameters())
        trainable.forward_backward(share(world))
        norms.append(trainable.update(measure=True).grad_norm.item())
        assert all(parameter.grad is None for parameter in model_of(trainable).parameters())
    (whole,) = trainable.evaluate([MicroBatch((X, Y, COUNTS), 12)])
    return norms, whole.value.item()


@pytest.mark.parametrize(("strategy", "num_ranks"), PLACES)
def test_a_step_that_is_discarded_was_never_taken(strategy: Strategy, num_ranks: int, tmp_path: Path) -> None:
    model, norms = by_hand_model(token_loss, steps=3)
    total = token_loss(model, (X, Y, COUNTS)).total.item()
    for found, left in everywhere(num_ranks, after_discarding, strategy, tmp_path / "ranks"):
        assert found == pytest.approx([norm.item() for norm in norms], rel=1e-5)  # fp32 sums in another order
        assert left == pytest.approx(total, rel=1e-5)


class Spoiled(torch.autograd.Function):
    """The identity, in whose gradient one element is replaced."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, element: int, value: float) -> Tensor:
        ctx.element, ctx.value = element, value
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        gradient = gradients[0].clone()
        gradient.view(-1)[ctx.element] = ctx.value
        return gradient, None, None


class Scale(nn.Module):
    """Multiplies its input by its three weights; the gradient of one of them may be spoiled."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))
        self.spoiled: tuple[int, float] | None = None

    def forward(self, x: Tensor) -> Tensor:
        return x * (self.weight if self.spoiled is None else Spoiled.apply(self.weight, *self.spoiled))


def scaled_model() -> nn.Module:
    """On two ranks, one holds two weights of the scale and the other one; of the last layer's row, one holds none."""
    return nn.Sequential(Scale(), copy.deepcopy(MODEL))


SPOILED = [(element, value) for element in range(3) for value in (math.nan, math.inf, -math.inf)]


def what_is_finite(world: World, strategy: Strategy) -> tuple[bool, list[bool], list[bool], bool]:
    """Whether this rank finds its gradients finite: as they are; per spoiled element; afterwards; and whether it steps.

    Only the last rank's own gradient is spoiled.
    """
    trainable = prepare(token_loss, strategy=strategy, world=world, build=scaled_model)

    def is_finite(spoiled: tuple[int, float] | None) -> bool:
        model_of(trainable)[0].spoiled = spoiled if world.rank == world.size - 1 else None
        trainable.forward_backward(share(world))
        found: Tensor = trainable.gradients_finite()
        assert (found.shape, found.dtype) == ((), torch.bool)
        return bool(found)

    def is_finite_and_dropped(spoiled: tuple[int, float] | None) -> bool:
        found = is_finite(spoiled)
        trainable.discard()
        return found

    before = is_finite_and_dropped(None)
    here = [is_finite_and_dropped(spoiled) for spoiled in SPOILED]
    anywhere = [world.any(not found) for found in here]
    after = is_finite(None)
    stepped: bool = trainable.update(measure=False).stepped
    return before and after, here, anywhere, stepped


@pytest.mark.parametrize(("strategy", "num_ranks"), PLACES)
def test_one_element_that_is_not_finite_is_found(strategy: Strategy, num_ranks: int, tmp_path: Path) -> None:
    ranks = everywhere(num_ranks, what_is_finite, strategy, tmp_path / "ranks")
    for finite, _, anywhere, stepped in ranks:
        assert finite
        assert anywhere == [True] * len(SPOILED)
        assert stepped
    if isinstance(strategy, FSDP):  # elements 0 and 1 are in the shard of rank 0, element 2 in that of rank 1
        assert ranks[0][1] == [element == 2 for element, _ in SPOILED]
        assert ranks[1][1] == [element != 2 for element, _ in SPOILED]
    else:
        assert not any(found for _, here, *_ in ranks for found in here), "every rank has the whole, or says the same"


def test_no_gradient_at_all_and_an_empty_one_are_finite() -> None:
    assert bool(all_finite([]))
    assert bool(all_finite([torch.empty(0), torch.empty(0, 4)]))
    assert bool(all_finite([torch.empty(0), torch.full((2,), torch.finfo(torch.float32).max)]))
    assert not bool(all_finite([torch.empty(0), torch.tensor([1.0, math.nan])]))
    assert not bool(all_finite([torch.ones(2, dtype=torch.float16), torch.tensor([-math.inf], dtype=torch.bfloat16)]))


def exchanged(world: World, strategy: Strategy) -> int:
    trainable: Trainable = prepare(token_loss, strategy=strategy, world=world)
    return trainable.exchange_bytes


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [
        pytest.param(Single(), [84], id="single"),  # 4 × (12 + 4 + 4 + 1)
        pytest.param(DDP(), [84, 84], id="ddp"),
        pytest.param(FSDP(), [52, 32], id="fsdp"),  # rows: 2 and 2 of [4, 3], 2 and 2 of [4], 1 and 0 of [1, 4] and [1]
        pytest.param(DeepSpeed(stage=1), [84, 84], id="zero1", marks=needs_deepspeed),
        pytest.param(DeepSpeed(stage=3), [84, 84], id="zero3", marks=needs_deepspeed),
    ],
)
def test_gradients_are_exchanged_in_as_many_bytes_as_the_parameters_have(
    strategy: Strategy, expected: list[int], tmp_path: Path
) -> None:
    assert everywhere(len(expected), exchanged, strategy, tmp_path / "ranks") == expected


def test_a_frozen_parameter_has_no_gradient_to_exchange() -> None:
    def half_frozen() -> nn.Module:
        model = copy.deepcopy(MODEL)
        model[0].requires_grad_(False)
        return model.to(torch.bfloat16)

    assert prepare(token_loss, build=half_frozen).exchange_bytes == 2 * (4 + 1)
