"""Which step boundaries matter."""

from types import SimpleNamespace
from typing import Any

import torch

from runner.config.run_spec import Eval, EvalSet
from runner.engine.cadence import Cadence
from runner.world.solo import SoloWorld

WORLD = SoloWorld(torch.device("cpu"))


def cadence(
    *,
    steps: int = 20,
    stop_at: Any = None,
    log: int = 10,
    evaluate: Any = None,
    save: Any = None,
    minutes: Any = None,
    start: int = 0,
    sets: Any = None,
) -> Any:
    spec = SimpleNamespace(
        run=SimpleNamespace(steps=steps, stop_at_step=stop_at),
        log=SimpleNamespace(every_steps=log),
        eval=Eval(every_steps=evaluate, at_start=False, at_end=True, micro_items=None, sets=sets or {}),
        checkpoint=SimpleNamespace(every_steps=save, every_minutes=minutes, at_end=True),
    )
    return Cadence(spec, start=start)


def boundaries(cadence: Any, *, start: int = 0) -> Any:
    """The steps at which the loop stops to look, once the clock's first poll is over."""
    step, found = start, []
    while step < cadence.end:
        step = cadence.next_after(step)
        cadence.poll(step, WORLD, stop=False)
        found.append(step)
    return found


def test_between_boundaries_nothing_is_due() -> None:
    assert boundaries(cadence(log=10, evaluate=15, save=7)) == [1, 7, 10, 14, 15, 20]


def test_cadences_count_from_the_runs_beginning_not_the_attempts() -> None:
    assert boundaries(cadence(log=10, save=7, start=8), start=8) == [9, 10, 14, 20]


def test_the_last_step_of_an_attempt_is_logged_and_saved_but_evaluated_only_at_the_runs_end() -> None:
    stopped = cadence(stop_at=13)
    assert stopped.end == 13
    assert (stopped.logs(13), stopped.saves(13), stopped.evaluates(13)) == (True, True, False)
    whole = cadence()
    assert (whole.logs(20), whole.saves(20), whole.evaluates(20)) == (True, True, True)


def test_a_set_of_its_own_cadence_is_evaluated_at_it() -> None:
    one = cadence(log=100, evaluate=5, sets={"far": EvalSet(every_steps=8), "last": EvalSet(every_steps=None)})
    assert boundaries(one) == [1, 5, 8, 10, 15, 16, 20]
    assert [step for step in range(1, 21) if one.evaluates_set("near", step)] == [5, 10, 15, 20]
    assert [step for step in range(1, 21) if one.evaluates_set("far", step)] == [8, 16, 20]
    assert [step for step in range(1, 21) if one.evaluates_set("last", step)] == [20]


def test_a_wish_is_heard_at_the_next_poll() -> None:
    one = cadence(log=100)
    assert one.poll(1, WORLD, stop=True).stop
    assert not one.poll(1, WORLD, stop=True).polled, "the next poll lies ahead"


def test_a_checkpoint_by_the_clock_is_due_once_its_minutes_have_passed() -> None:
    one = cadence(minutes=1e-9)
    assert one.poll(1, WORLD, stop=False).save
    assert not cadence(minutes=1e9).poll(1, WORLD, stop=False).save
