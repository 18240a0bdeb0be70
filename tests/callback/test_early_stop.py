"""Early stop: when, why, and across a resume."""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from runner.callback.early_stop import EarlyStop, EarlyStopListener, Mode
from runner.config.run_spec import Eval
from runner.errors import HookError
from runner.protocols import Progress, Run
from tests.conftest import Ended

NAN = float("nan")


@dataclass(frozen=True)
class Spec:
    """As much of a spec as the check reads."""

    eval: Eval


@dataclass(frozen=True)
class AtStep:
    """As much of a run as the listener reads."""

    progress: Progress
    eval_prefixes: tuple[str, ...] = ("eval", "eval/far")


def evaluations(every_steps: int | None) -> Eval:
    return Eval(every_steps=every_steps, at_end=True, micro_items=None)


def at(step: int) -> Run:
    return AtStep(Progress(step=step, position=0))  # type: ignore[return-value]


def show(listener: EarlyStopListener, values: Sequence[float], *, start: int = 0) -> list[str | None]:
    """What it answers to evaluations at steps 10, 20, …"""
    return [
        listener.after_eval(at(10 * step), {"eval/loss": value, "eval/accuracy": value})
        for step, value in enumerate(values, start=start + 1)
    ]


@pytest.mark.parametrize(
    ("part", "values", "stops_at"),
    [
        (EarlyStop(patience=2), [3.0, 2.0, 2.0, 2.5], 4),
        (EarlyStop(patience=2), [3.0, 2.0, 2.5, 1.0, 2.0], None),
        (EarlyStop(patience=1, min_delta=0.5), [3.0, 2.4, 2.0], 3),
        (EarlyStop(patience=1, mode=Mode.max, metric="eval/accuracy"), [0.5, 0.6, 0.6], 3),
        (EarlyStop(patience=2), [NAN, NAN], 2),
        (EarlyStop(patience=2), [2.0, NAN, 1.0, NAN], None),
    ],
    ids=["patience", "improves-again", "min-delta", "max", "never-finite", "nan-is-no-progress"],
)
def test_it_stops_after_patience_evaluations_without_improvement(
    part: EarlyStop, values: list[float], stops_at: int | None
) -> None:
    answers = show(part.build(), values)
    expected = [stops_at is not None and number >= stops_at for number in range(1, len(values) + 1)]
    assert [answer is not None for answer in answers] == expected


def test_it_says_why() -> None:
    answers = show(EarlyStop(patience=2).build(), [0.31, 0.4, 0.5])
    assert answers[-1] == "eval/loss did not improve in 2 evaluations: best 0.31 at step 10"
    assert show(EarlyStop(patience=1).build(), [NAN])[-1] == (
        "eval/loss did not improve in 1 evaluations: it was never finite"
    )


@pytest.mark.parametrize("cut", [0, 1, 2, 3])
def test_it_goes_on_counting_after_a_resume(cut: int) -> None:
    values = [3.0, 2.0, 2.5, 2.6]
    whole = show(EarlyStop(patience=2).build(), values)
    before, after = EarlyStop(patience=2).build(), EarlyStop(patience=2).build()
    first = show(before, values[:cut])
    state: dict[str, Any] = json.loads(json.dumps(before.state_dict()))
    after.load_state_dict(state)
    assert first + show(after, values[cut:], start=cut) == whole


def test_a_metric_that_is_not_there_names_those_that_are() -> None:
    listener = EarlyStop(metric="eval/f1").build()
    with pytest.raises(
        HookError, match=r"did not yield it\. It yielded: eval/accuracy, eval/loss\. Choose one of these"
    ):
        show(listener, [1.0])


@pytest.mark.parametrize(
    ("part", "every_steps", "key", "says"),
    [
        (EarlyStop(), None, "eval.every_steps", "there are none during the run .* eval.every_steps=100"),
        (EarlyStop(metric="train/loss"), 5, "callback.early_stop.metric", "'train/loss' is not measured by an eval"),
    ],
)
def test_the_check_finds_what_cannot_work(part: EarlyStop, every_steps: int | None, key: str, says: str) -> None:
    (fault,) = part.check(Spec(evaluations(every_steps)))
    assert fault.key == key
    assert re.search(says, fault.message)


def test_the_check_finds_nothing_where_it_works() -> None:
    assert list(EarlyStop().check(Spec(evaluations(50)))) == []


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"patience": 0}, "patience=0 must be at least 1"),
        ({"min_delta": -0.1}, "min_delta=-0.1 must be a finite number of at least 0"),
        ({"min_delta": NAN}, "min_delta=nan must be a finite number of at least 0"),
    ],
)
def test_values_out_of_range_are_refused(values: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        EarlyStop(**values)


def test_the_run_ends_early_when_its_metric_stops_improving_on_all_ranks(runner: Callable[..., Ended]) -> None:
    options = ["callback=[early_stop]", "callback.early_stop.patience=2", "callback.early_stop.min_delta=100.0"]
    ended = runner("train", "points", "eval.every_steps=1", *options, "strategy=ddp", "hardware.processes=2")
    # The first evaluation is the best; the second and third are no hundred better.
    assert ended.run_dir.read_status()["step"] == 3
    assert ended.run_dir.read_status()["state"] == "done"
    assert (ended.run_dir.checkpoints / "step_3").is_dir()
    assert "ended after step 3" in ended.stderr
