"""The scaled step: a loss scale changes which gradients survive, and nothing else. Laws 3 and 4 in float16."""

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.testing import assert_close

from runner import Loss
from runner.errors import NonFiniteError
from runner.optimizer.adamw import AdamW
from runner.optimizer.sgd import SGD
from runner.precision.fp16 import FP16
from runner.protocols import Clip, MicroBatch, StepBatches
from tests.strategy.common.test_module_trainable import (
    COUNTS,
    MODEL,
    ROUNDING,
    X,
    Y,
    cut_into,
    mean_loss,
    prepare,
    token_loss,
    weights,
)

LENGTHS = st.lists(st.integers(1, 4), max_size=3)
LOSSES = pytest.mark.parametrize("loss", [mean_loss, token_loss])


def train(trainable: Any, lengths: Any, steps: Any) -> Any:
    updates = []
    for _ in range(steps):
        trainable.forward_backward(cut_into(lengths))
        updates.append(trainable.update(measure=True))
    return updates


@given(lengths=LENGTHS, exponent=st.integers(-8, 60))
@settings(deadline=None, max_examples=25)
@LOSSES
def test_without_narrow_types_any_scale_gives_the_bits_of_no_scale(loss: Any, lengths: Any, exponent: Any) -> None:
    """Powers of two round nothing: what differs from fp32 is autocast alone, never the scale."""
    scaled = prepare(loss, precision=FP16(enabled=False, init_scale=2.0**exponent))
    plain = prepare(loss)
    assert all(update.stepped for update in train(scaled, lengths, 3))
    train(plain, lengths, 3)
    assert all(map(torch.equal, weights(scaled), weights(plain)))


@given(lengths=LENGTHS)
@settings(deadline=None, max_examples=15)
@LOSSES
@pytest.mark.parametrize("clip", [Clip(norm=0.05), Clip(value=0.01), Clip(norm=0.05, value=0.02)])
def test_clipping_acts_on_the_unscaled_divided_gradient(loss: Any, clip: Any, lengths: Any) -> None:
    scaled, plain = prepare(loss, clip=clip, precision=FP16(enabled=False)), prepare(loss, clip=clip)
    for ours, theirs in zip(train(scaled, lengths, 2), train(plain, lengths, 2), strict=True):
        assert_close(ours.grad_norm, theirs.grad_norm, **ROUNDING)
    assert_close(weights(scaled), weights(plain), **ROUNDING)


@given(lengths=LENGTHS)
@settings(deadline=None, max_examples=15)
@LOSSES
def test_any_cut_in_float16_is_the_step_of_one_large_batch(loss: Any, lengths: Any) -> None:
    cut, whole = (
        prepare(loss, precision=FP16(init_scale=256.0)) for _ in range(2)
    )  # a toy gradient of 1 and more overflows 65536
    train(cut, lengths, 2)
    train(whole, [], 2)
    # Each round's gradient is rounded to float16's 11 bits: 2⁻¹¹ of a gradient near 1, times lr = 0.1, in each step.
    assert_close(weights(cut), weights(whole), rtol=0, atol=2e-4)


@pytest.mark.parametrize("optimizer", [SGD(lr=0.1), AdamW(lr=0.01)])
@LOSSES
@pytest.mark.parametrize("init_scale", [65536.0, 2.0**24])  # the larger one overflows at first
def test_one_round_is_bitwise_the_loop_with_torchs_own_scaler(loss: Any, optimizer: Any, init_scale: Any) -> None:
    trainable = prepare(loss, optimizer=optimizer, precision=FP16(init_scale=init_scale, growth_interval=3))
    updates = train(trainable, [], 12)
    model = copy.deepcopy(MODEL)
    theirs = optimizer.build(model.named_parameters(), items=12)
    scaler = torch.amp.GradScaler("cpu", init_scale=init_scale, growth_interval=3)
    scales = []
    for _ in range(12):
        with torch.autocast("cpu", torch.float16):
            result = loss(model, (X, Y, COUNTS))
        scaler.scale(result.total / result.count if isinstance(result, Loss) else result).backward()
        scaler.step(theirs)
        scaler.update()
        theirs.zero_grad()
        scales.append(scaler.get_scale())
    assert [update.record["loss_scale"] for update in updates] == scales
    assert all(map(torch.equal, weights(trainable), model.parameters()))


def many_tokens(model: Any, batch: Any) -> Any:
    """A sum over 2²⁰ tokens an item: the gradient of it overflows float16, that of the mean does not."""
    x, y, counts = batch
    each = ((model(x) - y) ** 2).squeeze(1) * counts * 2.0**20
    return Loss(each.sum(), counts.sum() * 2**20)


@pytest.mark.parametrize("lengths", [[], [6], [1, 4]])
def test_a_total_over_a_million_tokens_overflows_no_scale(lengths: Any) -> None:
    many, few = (prepare(loss, precision=FP16(init_scale=1024.0)) for loss in (many_tokens, token_loss))
    updates = train(many, lengths, 4)
    assert [update.record["skipped_steps"] for update in updates] == [0, 0, 0, 0]
    train(few, lengths, 4)
    assert all(map(torch.equal, weights(many), weights(few)))  # 2²⁰ is divided off before anything is rounded
    model = copy.deepcopy(MODEL)
    with torch.autocast("cpu", torch.float16):
        total = many_tokens(model, (X, Y, COUNTS)).total
    (total * 1024.0).backward()  # what scaling the total itself would do
    gradients = [one.grad for one in model.parameters() if one.grad is not None]
    assert not all(gradient.isfinite().all() for gradient in gradients)


def test_a_first_micro_batch_in_which_nothing_counts_is_no_measure() -> None:
    trainable = prepare(token_loss, precision=FP16(init_scale=256.0))
    empty = MicroBatch((X[3:4], Y[3:4], COUNTS[3:4]), 1)  # its count is 0
    rest = cut_into([5]).micro_batches
    for _ in range(2):
        trainable.forward_backward(StepBatches([empty, *rest], 13))
        assert trainable.update(measure=True).stepped


def test_a_skipped_step_moves_nothing_and_is_counted() -> None:
    trainable = prepare(mean_loss, optimizer=AdamW(lr=0.01), precision=FP16(init_scale=2.0**40))
    before = [weight.clone() for weight in weights(trainable)]
    (update,) = train(trainable, [], 1)
    assert not update.stepped
    assert update.record == {"loss_scale": 2.0**39, "skipped_steps": 1}
    assert all(map(torch.equal, weights(trainable), before))
    assert not trainable.optimizers["model"].state
    assert all(parameter.grad is None for parameter in trainable.models["model"].parameters())


def test_a_gradient_that_is_never_finite_ends_the_run() -> None:
    def divided_by_zero(model: Any, batch: Any) -> Any:
        return model(batch[0]).mean() * torch.inf

    trainable = prepare(divided_by_zero, precision=FP16(init_scale=4.0, min_scale=1.0))
    train(trainable, [], 2)
    with pytest.raises(
        NonFiniteError, match=r"not finite even at a loss scale of 1, and precision.min_scale=1 does not allow"
    ):
        train(trainable, [], 1)


def test_without_scaling_small_gradients_are_lost_and_with_it_they_are_not() -> None:
    def faint(model: Any, batch: Any) -> Any:
        return nn.functional.mse_loss(model(batch[0]), batch[1]) * 2.0**-24  # float16's smallest number is 2⁻²⁴

    kept, lost = prepare(faint, precision=FP16()), prepare(faint, precision=FP16(scale_loss=False))
    norms = [float(train(trainable, [], 1)[0].grad_norm) for trainable in (kept, lost, prepare(faint))]
    assert norms[0] == pytest.approx(norms[2], rel=0.01)
    assert norms[1] < norms[2] / 2
