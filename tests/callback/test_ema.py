"""The average of the weights: what it is, that evaluation sees it and leaves no trace, that it survives everything."""

from collections.abc import Callable
from typing import Any, final

import pytest
import torch

from runner.callback.ema import EMA, Start
from runner.errors import ModelError
from runner.protocols import State
from runner.strategy.deepspeed.flat_range import FlatRange
from tests.conftest import Ended
from tests.parity.options import placed, tensors
from tests.parity.test_resume import assert_same_run, stopped_and_resumed

AVERAGED = ["callback=[ema]", "callback.ema.decay=0.8"]
NOISE = ["loss._target_=user_hooks.points.noisy_loss", "model.dropout=0.2", "schedule=cosine"]


@pytest.mark.parametrize(
    ("start", "decays"),
    [
        (Start.COPY, [0.0, 0.9, 0.9]),
        (Start.WARMUP, [0.0, 3 / 12, 4 / 13]),
        (Start.DEBIAS, [0.0, 0.9 * 0.1 / 0.19, 0.9 * 0.19 / 0.271]),
    ],
)
def test_how_much_of_the_average_stays_at_the_first_updates(start: Any, decays: Any) -> None:
    part = EMA(decay=0.9, start=start)
    assert [part.decay_of(update) for update in (1, 2, 3)] == pytest.approx(decays)
    assert part.decay_of(10_000) == pytest.approx(0.9)


def test_debiased_averages_are_adams() -> None:
    part, average, moment = EMA(decay=0.9, start=Start.DEBIAS), 5.0, 0.0
    for update, weight in enumerate([3.0, -1.0, 4.0, 1.5], start=1):
        decay = part.decay_of(update)
        average = decay * average + (1 - decay) * weight
        moment = 0.9 * moment + 0.1 * weight
        assert average == pytest.approx(moment / (1 - 0.9**update))


@pytest.mark.parametrize(("name", "value"), [("decay", 1.0), ("decay", -0.1), ("every_steps", 0)])
def test_what_no_average_can_be_made_with_is_refused(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{name}={value} must"):
        EMA(**{name: value})


@final
class Pieces:
    """A model whose only weight is a FlatRange: as much of a trainable as is asked."""

    def state_dict(self) -> State[torch.Tensor]:
        weight = FlatRange(lambda: torch.zeros(2), shape=(4,), start=0, length=2, dtype=torch.float32)
        return State(models={"model": {"weight": weight}})


def test_weights_in_pieces_are_refused() -> None:
    with pytest.raises(ModelError, match=r"keeps weight in pieces that only a checkpoint can read\. Use strategy=fsdp"):
        EMA().build().tensors(Pieces())


def test_it_is_the_average_of_the_weights_of_each_step(runner: Callable[..., Ended]) -> None:
    weights = runner("train", "points", "checkpoint.every_steps=1", "checkpoint.keep_last=null")
    ended = runner("train", "points", *AVERAGED, "callback.ema.start=copy")
    average = tensors(weights, 1)
    for step in range(2, 11):
        now = tensors(weights, step)
        average = {name: 0.8 * average[name] + 0.2 * now[name] for name in average}
    ours = tensors(ended, 10, "callback.ema.")
    for name, tensor in average.items():
        # Both round twice a step, each time by 6e-8 of a weight below 1 at most, and keep 0.8 of the error before.
        torch.testing.assert_close(ours["callback.ema." + name.removeprefix("model.")], tensor, rtol=0, atol=1.2e-6)
    for name, tensor in tensors(ended, 10).items():
        assert torch.equal(tensor, tensors(weights, 10)[name]), "training does not see the average"


def test_an_evaluation_sees_it_and_training_never_does(runner: Callable[..., Ended]) -> None:
    plain = runner("train", "points").metrics()
    ended = runner("train", "points", *AVERAGED).metrics()
    duplicate = runner("train", "points", *AVERAGED, "callback.ema.evaluate_with=model").metrics()
    assert duplicate == plain
    for one, other in zip(ended, plain, strict=True):
        assert (one == other) is ("eval/loss" not in one)


@pytest.mark.parametrize("place", [placed("single", 1), placed("fsdp", 2)], ids=["single", "fsdp"])
def test_stopping_in_mid_epoch_changes_no_bit(runner: Callable[..., Ended], place: Any) -> None:
    options = [*NOISE, *AVERAGED, *place, "callback.ema.every_steps=2"]
    expected = runner("train", "points", *options)
    assert_same_run(stopped_and_resumed(runner, 3, *options), expected, 10)
    assert_same_run(stopped_and_resumed(runner, 6, *options), expected, 10)


def test_sharded_and_whole_averages_are_the_same_and_continue_each_other(runner: Callable[..., Ended]) -> None:
    expected = runner("train", "points", *AVERAGED)
    stopped = runner("train", "points", *AVERAGED, *placed("fsdp", 2), "run.stop_at_step=4")
    resumed = runner("resume", str(stopped.run_dir.path), *placed("ddp", 2))
    ours, theirs = tensors(resumed, 10, "callback."), tensors(expected, 10, "callback.")
    assert ours.keys() == theirs.keys()
    for name in theirs:
        # fp32 sums in another order, through ten steps of AdamW.
        torch.testing.assert_close(ours[name], theirs[name], rtol=0, atol=2e-6)
    for one, other in zip(resumed.metrics(), expected.metrics(), strict=True):
        assert one == pytest.approx(other, rel=1e-5)


def test_a_resumed_run_may_begin_it(runner: Callable[..., Ended]) -> None:
    stopped = runner("train", "points", "run.stop_at_step=4")
    resumed = runner("resume", str(stopped.run_dir.path), "callback=[ema]", "callback.ema.start=copy")
    assert tensors(resumed, 10, "callback.").keys()
    assert all(tensor.isfinite().all() for tensor in tensors(resumed, 10, "callback.").values())


def test_scaler_schedule_and_average_resume_together_in_mid_epoch(runner: Callable[..., Ended]) -> None:
    """A scale that grows each third step: its place in that count must come back, too."""
    options = [*NOISE, *AVERAGED, "precision=fp16", "precision.init_scale=1e9", "precision.growth_interval=3"]
    expected = runner("train", "points", *options, timeout_s=120)
    assert max(line.get("train/skipped_steps", 0) for line in expected.metrics()) > 0, "the first scale is too large"
    for step in (2, 7):
        assert_same_run(stopped_and_resumed(runner, step, *options), expected, 10)
