"""Laws 3 and 4 on one process: a step's gradient is the sum over its items, divided once, however it is cut."""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.testing import assert_close

from runner import Loss
from runner.errors import HookError
from runner.optimizer.adamw import AdamW
from runner.optimizer.sgd import SGD
from runner.protocols import Clip, MicroBatch, StepBatches, World
from runner.strategy.ddp import DDP
from runner.strategy.single import Single
from runner.world.solo import SoloWorld
from tests.strategy.ranks import builder, model_of

WORLD = SoloWorld(torch.device("cpu"))
torch.manual_seed(0)
MODEL = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
X, Y = torch.randn(12, 3), torch.randn(12, 1)
COUNTS = torch.tensor([1, 5, 2, 0, 3, 1, 4, 1, 1, 2, 6, 1])  # say, tokens of each item


def mean_loss(model: Any, batch: Any) -> Any:
    x, y, _ = batch
    return ((model(x) - y) ** 2).mean()


def token_loss(model: Any, batch: Any) -> Any:
    x, y, counts = batch
    return Loss((((model(x) - y) ** 2).squeeze(1) * counts).sum(), counts.sum())


def prepare(
    loss: Any,
    *,
    strategy: Any = None,
    optimizer: Any = None,
    clip: Any = None,
    precision: Any = None,
    build: Callable[[], nn.Module] = lambda: copy.deepcopy(MODEL),
    world: World = WORLD,
) -> Any:
    return (strategy or Single()).prepare(
        builder(
            build=build,
            optimizer=partial((optimizer or SGD(lr=0.1)).build, items=12),
            loss=loss,
            precision=precision,
            clip=clip,
        ),
        world,
    )


def cut_into(lengths: Any, items: int = 12) -> Any:
    """Micro-batches of these lengths; what is left over is the last."""
    rounds, first = [], 0
    for length in [*lengths, items - sum(lengths)]:
        part = slice(first, first + length)
        rounds.append(MicroBatch((X[part], Y[part], COUNTS[part]), length))
        first += length
    return StepBatches(rounds, items)


def weights(trainable: Any) -> Any:
    return [parameter.detach() for parameter in model_of(trainable).parameters()]


def by_hand(loss: Any, *, steps: Any, clip: Any = None, optimizer: Any = None) -> Any:
    """The weights and gradient norms of the hand-written loop."""
    model, norms = by_hand_model(loss, steps=steps, clip=clip, optimizer=optimizer)
    return [parameter.detach() for parameter in model.parameters()], norms


def by_hand_model(loss: Any, *, steps: Any, clip: Any = None, optimizer: Any = None) -> Any:
    """The hand-written loop over one large batch: the oracle."""
    model = copy.deepcopy(MODEL)
    optimizer = (optimizer or SGD(lr=0.1)).build(model.named_parameters(), items=12)
    norms = []
    for _ in range(steps):
        result = loss(model, (X, Y, COUNTS))
        (result.total / result.count if isinstance(result, Loss) else result).backward()
        norms.append(nn.utils.get_total_norm([one.grad for one in model.parameters() if one.grad is not None]))
        if clip and clip.value:
            nn.utils.clip_grad_value_(model.parameters(), clip.value)
        if clip and clip.norm:
            nn.utils.clip_grad_norm_(model.parameters(), clip.norm)
        optimizer.step()
        optimizer.zero_grad()
    return model, norms


@pytest.mark.parametrize("strategy", [Single(), DDP()])
@pytest.mark.parametrize("loss", [mean_loss, token_loss])
@pytest.mark.parametrize("clip", [Clip(), Clip(norm=0.05), Clip(value=0.01), Clip(norm=0.05, value=0.02)])
def test_one_round_is_bitwise_the_hand_written_loop(strategy: Any, loss: Any, clip: Any) -> None:
    trainable = prepare(loss, strategy=strategy, clip=clip, optimizer=AdamW(lr=0.01))
    for _ in range(3):
        trainable.forward_backward(cut_into([]))
        trainable.update(measure=False)
    expected, _ = by_hand(loss, steps=3, clip=clip, optimizer=AdamW(lr=0.01))
    for ours, theirs in zip(weights(trainable), expected, strict=True):
        assert torch.equal(ours, theirs)


# Rounding only: fp32 sums of a dozen terms in another order differ by a few units in the last place of ~1.
ROUNDING = {"rtol": 0, "atol": 1e-6}


@given(lengths=st.lists(st.integers(1, 4), max_size=3))
@settings(deadline=None, max_examples=25)
@pytest.mark.parametrize("loss", [mean_loss, token_loss])
@pytest.mark.parametrize("clip", [Clip(), Clip(norm=0.05), Clip(value=0.01)])
def test_any_cut_into_rounds_is_the_step_of_one_large_batch(loss: Any, clip: Any, lengths: Any) -> None:
    trainable = prepare(loss, clip=clip)
    expected, norms = by_hand(loss, steps=2, clip=clip)
    for norm in norms:
        trainable.forward_backward(cut_into(lengths))
        assert_close(trainable.update(measure=True).grad_norm, norm, **ROUNDING)
    assert_close(weights(trainable), expected, **ROUNDING)


@pytest.mark.parametrize("loss", [mean_loss, token_loss])
def test_a_filler_changes_nothing(loss: Any) -> None:
    plain, filled = prepare(loss), prepare(loss)
    for trainable, extra in ((plain, []), (filled, [MicroBatch((X[:1], Y[:1], COUNTS[:1]), 0)])):
        batches = cut_into([5])
        batches = StepBatches([*batches.micro_batches, *extra], batches.items)
        loss_of_step = trainable.forward_backward(batches)
        trainable.update(measure=False)
        assert float(loss_of_step.count) == (12 if loss is mean_loss else int(COUNTS.sum()))
    assert_close(weights(filled), weights(plain), **ROUNDING)


def test_a_step_in_which_nothing_counts_moves_nothing() -> None:
    def nothing(model: Any, batch: Any) -> Any:
        return Loss(model(batch[0]).sum() * 0, torch.tensor(0))

    trainable = prepare(nothing)
    before = [weight.clone() for weight in weights(trainable)]
    for lengths in ([], [6]):
        trainable.forward_backward(cut_into(lengths))
        trainable.update(measure=False)
    assert_close(weights(trainable), before, rtol=0, atol=0)


def test_evaluation_restores_each_modules_mode_and_counts_no_filler() -> None:
    trainable = prepare(token_loss)
    model_of(trainable)[0].eval()  # a user's frozen part
    losses = list(trainable.evaluate(cut_into([5]).micro_batches))
    assert [module.training for module in model_of(trainable).modules()] == [True, False, True, True]
    assert sum(int(loss.count) for loss in losses) == int(COUNTS.sum())


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (lambda model, batch: model(batch[0]), r"a tensor of shape \[12, 1\], but must be a scalar tensor"),
        (lambda model, batch: 3.0, "the loss that the loss hook returned is a float"),
        (lambda model, batch: Loss(model(batch[0]), 12), r"Loss.total that the loss hook returned is a tensor"),
        (lambda model, batch: model(batch[0]).mean().detach(), "has no gradient. Compute it from the model's output"),
    ],
)
def test_a_loss_that_cannot_be_trained_on_is_refused(result: Any, message: str) -> None:
    with pytest.raises(HookError, match=message):
        prepare(result).forward_backward(cut_into([]))
