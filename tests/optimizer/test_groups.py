"""Which parameters have which rate and decay, and what a pattern or a scale that makes no sense is told."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from runner.errors import ModelError, SpecError
from runner.optimizer.adamw import AdamW
from runner.optimizer.foreign import ForeignOptimizer
from runner.optimizer.scale import ScaleLR
from runner.optimizer.sgd import SGD
from tests.conftest import Ended

MODEL = nn.ModuleDict({"body": nn.Linear(2, 2), "norm": nn.LayerNorm(2), "head": nn.Linear(2, 1)})
NAMES = {id(parameter): name for name, parameter in MODEL.named_parameters()}
RMSPROP = ForeignOptimizer(target="torch.optim.RMSprop", arguments={"lr": 1.0, "weight_decay": 0.5})
PARTS = pytest.mark.parametrize(
    "part",
    [AdamW(lr=1.0, weight_decay=0.5), SGD(lr=1.0, weight_decay=0.5), RMSPROP],
    ids=lambda part: type(part).__name__,
)


def groups(part: Any, items: int = 8) -> list[tuple[float, float, list[str]]]:
    """Rate, decay and names of each group."""
    optimizer = part.build(MODEL.named_parameters(), items=items)
    return [
        (group["lr"], group["weight_decay"], [NAMES[id(parameter)] for parameter in group["params"]])
        for group in optimizer.param_groups
    ]


@PARTS
def test_the_first_pattern_that_is_found_gives_rate_and_decay(part: Any) -> None:
    own = [
        {"match": "^body", "lr_factor": 0.1},
        {"match": "bias", "lr_factor": 2.0, "weight_decay": 0.25},
        {"match": "head", "weight_decay": 0},
    ]
    assert groups(replace(part, no_decay=["bias", "norm"], groups=own)) == [
        (1.0, 0.0, ["norm.weight"]),
        (0.1, 0.5, ["body.weight"]),
        (0.1, 0.0, ["body.bias"]),
        (2.0, 0.25, ["norm.bias", "head.bias"]),
        (1.0, 0.0, ["head.weight"]),
    ]


@PARTS
def test_without_groups_there_is_one(part: Any) -> None:
    assert groups(part) == [(1.0, 0.5, [*NAMES.values()])]


def test_a_pattern_that_takes_nothing_names_what_there_is() -> None:
    with pytest.raises(SpecError, match=r"'tail' matches no trainable parameter\..*body\.weight, body\.bias"):
        groups(AdamW(groups=[{"match": "tail", "lr_factor": 0.1}]))
    with pytest.raises(SpecError, match="'body' matches only parameters that earlier groups contain"):
        groups(AdamW(groups=[{"match": "body|head", "lr_factor": 0.1}, {"match": "body", "lr_factor": 0.2}]))


def test_a_model_without_trained_parameters_is_refused() -> None:
    with pytest.raises(ModelError, match="there is nothing to train"):
        AdamW().build([("frozen", nn.Parameter(torch.zeros(1), requires_grad=False))], items=8)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"groups": [{"match": "("}]}, "write a group as"),
        (
            {"groups": [{"match": "(", "lr_factor": 1.0}]},
            r"groups contains '\(', which is not a valid regular expression",
        ),
        ({"groups": [{"match": "a", "lr": 1.0}]}, "with lr_factor, weight_decay or both"),
        ({"groups": [{"lr_factor": 1.0}]}, "write a group as"),
        ({"groups": [{"match": "a", "lr_factor": -1}]}, "lr_factor must be a number ≥ 0"),
        ({"groups": [{"match": "a", "weight_decay": "x"}]}, "weight_decay must be a number ≥ 0"),
        ({"no_decay": ["["]}, r"no_decay contains '\[', which is not a valid regular expression"),
        ({"scale_lr": ScaleLR.LINEAR}, "base_items=null, but scale_lr=linear needs it"),
        ({"base_items": 0}, "base_items=0 must be at least 1"),
    ],
)
def test_what_makes_no_sense_is_refused(fields: Any, words: str) -> None:
    for part in (AdamW, SGD):
        with pytest.raises(ValueError, match=words):
            part(**fields)
    with pytest.raises(ValueError, match=words):
        replace(RMSPROP, **fields)


@PARTS
@pytest.mark.parametrize(
    ("scale", "rate"), [(ScaleLR.NONE, 1.0), (ScaleLR.LINEAR, 4.0), (ScaleLR.SQRT, math.sqrt(4.0))]
)
def test_the_rate_follows_the_items_of_a_step_as_chosen(part: Any, scale: Any, rate: Any) -> None:
    part = replace(part, scale_lr=scale, base_items=64, groups=[{"match": "head", "lr_factor": 0.5}])
    assert [group[0] for group in groups(part, items=256)] == [rate, rate / 2]


@dataclass(frozen=True)
class NoSpec:
    """Nothing of a spec is read."""


def test_another_librarys_optimizer_is_told_what_it_cannot_do() -> None:
    rprop = ForeignOptimizer(target="torch.optim.Rprop", no_decay=["bias"])
    assert ["has no weight_decay" in fault.message for fault in rprop.check(NoSpec())] == [True]
    wrong = ForeignOptimizer(target="torch.optim.SGD", arguments={"lr": -1})
    assert ["rejects {'lr': -1}" in fault.message for fault in wrong.check(NoSpec())] == [True]
    defaults = ForeignOptimizer(target="torch.optim.Rprop", scale_lr=ScaleLR.SQRT, base_items=1)
    assert list(defaults.check(NoSpec())) == []
    assert groups(replace(RMSPROP, arguments={}, scale_lr=ScaleLR.LINEAR, base_items=4))[0][0] == pytest.approx(0.02)


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("torch.optim.LBFGS", "LBFGS.step needs an argument, but a step is one forward and backward"),
        ("collections.Counter", "makes a Counter, but an optimizer must be a subclass of torch.optim.Optimizer"),
        ("user_hooks_of_nobody.Broken", "rejects {}: KeyError: 'broken'"),
        ("user_hooks_of_nobody.Relative", "has None as its lr, but the schedule multiplies a number. Set optimizer.lr"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_as_an_optimizer_is_one_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str, words: str
) -> None:
    (tmp_path / "user_hooks_of_nobody.py").write_text(
        "import torch\n"
        "class Broken(torch.optim.Optimizer):\n"
        "    def __init__(self, params):\n"
        "        raise KeyError('broken')\n"
        "class Relative(torch.optim.Optimizer):\n"
        "    def __init__(self, params, lr=None):\n"
        "        super().__init__(params, {'lr': lr})\n"
        "    def step(self): ...\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert [words in fault.message for fault in ForeignOptimizer(target=target).check(NoSpec())] == [True]


def test_transformers_optimizer_and_schedule_train_and_resume(runner: Callable[..., Ended]) -> None:
    """Both names are members that transformers imports when they are asked for."""
    options = [
        "optimizer._target_=transformers.Adafactor",
        "optimizer.lr=0.01",
        "+optimizer.relative_step=false",
        "+optimizer.scale_parameter=false",
        "schedule._target_=transformers.get_linear_schedule_with_warmup",
        "+schedule.num_warmup_steps=2",
        "+schedule.num_training_steps=${run.steps}",
    ]
    ended = runner("train", "points", *options, "run.stop_at_step=4")
    rates = [line["train/lr"] for line in ended.metrics() if "train/lr" in line]
    assert rates == pytest.approx([0.0, 0.005, 0.01, 0.00875])
    resumed = runner("resume", str(ended.run_dir.path))
    assert resumed.metrics() == runner("train", "points", *options).metrics()


def test_a_whole_run_logs_the_scaled_rate_and_resumes_its_groups(runner: Callable[..., Ended]) -> None:
    options = [
        "optimizer.scale_lr=linear",
        "optimizer.base_items=6",
        "optimizer.groups=[{match: '^3', lr_factor: 0.5, weight_decay: 0.0}]",
        "optimizer.lr=0.01",
    ]
    ended = runner("train", "points", *options, "run.stop_at_step=4")
    assert [line["train/lr"] for line in ended.metrics() if "train/lr" in line] == [0.02] * 4
    resumed = runner("resume", str(ended.run_dir.path))
    assert resumed.metrics() == runner("train", "points", *options).metrics()


def test_an_optimizer_without_a_rate_cannot_scale_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "rateless.py").write_text(
        "import torch\n"
        "class Rateless(torch.optim.Optimizer):\n"
        "    def __init__(self, params):\n"
        "        super().__init__(params, {})\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    part = ForeignOptimizer(target="rateless.Rateless", groups=[{"match": "head", "lr_factor": 0.5}])
    assert ["has no lr, but the schedule multiplies a number" in fault.message for fault in part.check(NoSpec())] == [
        True
    ]
