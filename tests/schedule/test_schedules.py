"""Learning rates over optimizer steps, held against arithmetic on paper and torch's own schedulers."""

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn import Parameter

from runner.schedule.constant import Constant
from runner.schedule.cosine import Cosine
from runner.schedule.factor import Start
from runner.schedule.foreign import ForeignSchedule
from runner.schedule.linear import Linear


def rates(part: Any, *, steps: Any, lr: float = 1.0) -> Any:
    """The rate that each of the steps uses."""
    optimizer = torch.optim.SGD([Parameter(torch.zeros(1))], lr=lr)
    schedule = part.build(optimizer, steps=steps)
    used = []
    for _ in range(steps):
        used.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return used


def test_constant_stays() -> None:
    assert rates(Constant(), steps=3, lr=0.5) == [0.5, 0.5, 0.5]


def test_warm_up_rises_in_equal_steps_to_the_base_rate() -> None:
    assert rates(Constant(warmup_steps=4), steps=6) == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("share", "steps", "number"),
    [("50%", 8, 4), ("5%", 400, 20), ("2.5 %", 400, 10), ("5%", 2, 1), ("0%", 8, 0), ("100%", 3, 3), ("18%", 276, 50)],
)
def test_warm_up_may_be_a_share_of_the_run_which_is_rounded_up(share: str, steps: int, number: int) -> None:
    for part in (Constant, Linear, Cosine):
        assert rates(part(warmup_steps=share), steps=steps) == rates(part(warmup_steps=number), steps=steps)
        assert list(part(warmup_steps=share).check(SimpleNamespace(run=SimpleNamespace(steps=steps)))) == []


@pytest.mark.parametrize("wrong", [-1, "-5%", "101%", "five", "%", "5%%", ""])
def test_other_words_for_the_warm_up_are_refused(wrong: Any) -> None:
    with pytest.raises(ValueError, match=r"must be a number of steps that is not negative, or a share of the run"):
        Linear(warmup_steps=wrong)


def test_linear_falls_to_its_final_factor() -> None:
    assert rates(Linear(final_factor=0.5), steps=4) == [1.0, 0.875, 0.75, 0.625]
    assert rates(Linear(warmup_steps=2), steps=4) == [0.5, 1.0, 1.0, 0.5]


def test_cosine_is_torchs_cosine_annealing() -> None:
    optimizer = torch.optim.SGD([Parameter(torch.zeros(1))], lr=0.3)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=7, eta_min=0.03)
    expected = []
    for _ in range(7):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        theirs.step()
    assert rates(Cosine(final_factor=0.1), steps=7, lr=0.3) == pytest.approx(expected, rel=1e-9)
    assert rates(Cosine(), steps=2)[1] == pytest.approx(0.5 * (1 + math.cos(math.pi / 2)))


def test_a_warm_up_may_start_at_zero() -> None:
    """With 2 steps of warm-up of 6: up in halves from 0, then down in quarters from 1."""
    start = {"warmup_steps": 2, "warmup_start": Start.ZERO}
    assert rates(Linear(**start), steps=6) == [0.0, 0.5, 1.0, 0.75, 0.5, 0.25]
    assert rates(Constant(**start), steps=4) == [0.0, 0.5, 1.0, 1.0]
    down = [(1 + math.cos(math.pi * part)) / 2 for part in (0, 0.25, 0.5, 0.75)]
    assert rates(Cosine(**start), steps=6) == pytest.approx([0.0, 0.5, *down])
    assert rates(Linear(warmup_start=Start.ZERO), steps=2) == [1.0, 0.5]  # no warm-up


@pytest.mark.parametrize("warmup_steps", [0, 1, 7, 30])
@pytest.mark.parametrize(("part", "theirs"), [(Linear, "linear"), (Cosine, "cosine"), (Constant, "constant")])
def test_a_warm_up_from_zero_is_that_of_transformers_step_for_step(part: Any, theirs: str, warmup_steps: int) -> None:
    transformers = pytest.importorskip("transformers")
    optimizer = torch.optim.SGD([Parameter(torch.zeros(1))], lr=3e-4)
    name = "constant_with_warmup" if theirs == "constant" else theirs
    schedule = transformers.get_scheduler(name, optimizer, num_warmup_steps=warmup_steps, num_training_steps=30)
    expected = []
    for _ in range(30):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    ours = rates(part(warmup_steps=warmup_steps, warmup_start=Start.ZERO), steps=30, lr=3e-4)
    assert ours == pytest.approx(expected, rel=1e-12, abs=1e-18)


def test_any_scheduler_of_torch_steps_once_for_each_optimizer_step() -> None:
    part = ForeignSchedule(target="torch.optim.lr_scheduler.StepLR", arguments={"step_size": 2, "gamma": 0.1})
    assert rates(part, steps=5) == pytest.approx([1.0, 1.0, 0.1, 0.1, 0.01])


def test_a_schedule_continues_after_its_optimizers_state_was_loaded() -> None:
    """Loading replaces the optimizer's groups: a schedule that kept the old ones would move nothing."""
    optimizer = torch.optim.SGD([Parameter(torch.zeros(1))], lr=1.0)
    schedule = Linear().build(optimizer, steps=4)
    optimizer.load_state_dict(optimizer.state_dict())
    schedule.load_state_dict({"steps": 2})
    assert optimizer.param_groups[0]["lr"] == 0.5


def test_warm_up_that_does_not_fit_is_a_fault() -> None:
    spec = SimpleNamespace(run=SimpleNamespace(steps=10))
    for part in (Linear(warmup_steps=11), Cosine(warmup_steps=11)):
        (fault,) = part.check(spec)
        assert fault.key == "schedule.warmup_steps"
        assert fault.message == "11 warm-up steps do not fit in run.steps=10. Use fewer, or a share of the run: 5%."


def test_what_a_foreign_scheduler_refuses_is_a_fault() -> None:
    spec = SimpleNamespace(run=SimpleNamespace(steps=10))
    part = ForeignSchedule(target="torch.optim.lr_scheduler.OneCycleLR", arguments={"max_lr": 1.0})
    (fault,) = part.check(spec)
    assert fault.key == "schedule"
    assert "You must define either total_steps OR (epochs AND steps_per_epoch)" in fault.message


def test_a_scheduler_of_a_module_that_imports_its_members_late_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "late_schedules.py").write_text(LATE)
    monkeypatch.syspath_prepend(tmp_path)
    part = ForeignSchedule(target="late_schedules.get_halving", arguments={"every": 2})
    assert list(part.check(SimpleNamespace(run=SimpleNamespace(steps=10)))) == []
    optimizer = torch.optim.SGD([Parameter(torch.zeros(1))], lr=1.0)
    schedule = part.build(optimizer, steps=10)
    for _ in range(2):
        optimizer.step()
        schedule.step()
    assert optimizer.param_groups[0]["lr"] == 0.5


LATE = """
def __getattr__(name):  # as transformers' modules do
    if name == "get_halving":
        from torch.optim.lr_scheduler import LambdaLR
        return lambda optimizer, every: LambdaLR(optimizer, lambda step: 0.5 ** (step // every))
    if name == "get_rate":
        return lambda optimizer: 0.1
    raise AttributeError(name)
"""


def test_what_is_no_scheduler_is_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "late_schedules.py").write_text(LATE)
    monkeypatch.syspath_prepend(tmp_path)
    spec = SimpleNamespace(run=SimpleNamespace(steps=10))
    (fault,) = ForeignSchedule(target="late_schedules.get_rate").check(spec)
    assert fault.message.startswith("late_schedules.get_rate makes a float, but a scheduler has step, state_dict")
    (fault,) = ForeignSchedule(target="torch.optim.lr_scheduler.ReduceLROnPlateau").check(spec)
    assert "ReduceLROnPlateau.step needs an argument, but the runner gives none" in fault.message


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"warmup_steps": -1}, "warmup_steps=-1 must be a number of steps that is not negative"),
        ({"final_factor": 1.5}, r"final_factor=1.5 must lie in \[0, 1\]"),
    ],
)
def test_a_number_out_of_range_is_refused(fields: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Cosine(**fields)
