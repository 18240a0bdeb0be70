"""What a recipe may name as a metric, and what it hears otherwise."""

import sys
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from runner.errors import HookError
from runner.metric.classification import Classification
from runner.metric.foreign import ForeignMetric
from runner.metric.named_values import named_values
from runner.protocols import MicroBatchLoss
from runner.world.solo import SoloWorld

HERE = "tests.metric.test_foreign"
F1 = "torchmetrics.classification.BinaryF1Score"


class Neither:
    """Neither a metric nor a part."""


def share(found: Any, *, of: float = 1.0) -> float:
    return float(sum(found)) / of


def faults(**fields: Any) -> list[tuple[str, str]]:
    part = ForeignMetric(**fields)
    spec: Any = SimpleNamespace(metric={"mine": part})
    return [(fault.key, fault.message) for fault in part.check(spec)]


def test_metrics_and_functions_that_take_what_they_get_have_no_faults() -> None:
    assert faults(target=F1, arguments={"threshold": 0.3}, inputs={"preds": "score"}) == []
    assert faults(target=f"{HERE}.share", arguments={"of": 2}) == []
    assert list(Classification().check(SimpleNamespace(metric={}))) == []


@pytest.mark.parametrize(
    ("fields", "key", "said"),
    [
        (
            {"target": f"{HERE}.Neither"},
            "metric.mine._target_",
            "neither a part of the runner, nor a torchmetrics.Metr",
        ),
        ({"target": F1, "arguments": {"threshold": 2}}, "metric.mine", "rejects {'threshold': 2}: ValueError"),
        (
            {"target": F1, "inputs": {"pred": "score"}},
            "metric.mine.inputs.pred",
            "Did you mean preds? It takes: preds,",
        ),
        ({"target": f"{HERE}.share", "inputs": {"fond": "x"}}, "metric.mine.inputs.fond", "takes no 'fond'"),
        ({"target": f"{HERE}.share", "arguments": {"off": 2}}, "metric.mine.off", "does not take 'off'"),
        (
            {"target": f"{HERE}.share", "arguments": {"of": 2}, "inputs": {"of": "x"}},
            "metric.mine.of",
            "gets 'of' from the loss hook's outputs",
        ),
    ],
)
def test_what_cannot_be_fed_is_told_before_launch(fields: Any, key: str, said: str) -> None:
    [(found, message)] = faults(**fields)
    assert found == key
    assert said in message


def test_what_needs_torchmetrics_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchmetrics", None)  # importing it raises ModuleNotFoundError
    [(key, message)] = faults(target=f"{HERE}.Neither")
    assert key == "metric.mine._target_"
    assert message.endswith("must derive from torchmetrics.Metric: pip install 'hydra-runner[metrics]'")
    part = Classification()
    [fault] = part.check(cast("Any", SimpleNamespace(metric={"f1": part})))
    assert fault.key == "metric.f1"
    assert fault.message == "needs torchmetrics, which is not installed: pip install 'hydra-runner[metrics]'"
    assert faults(target=f"{HERE}.share") == [], "a function needs nothing"


@pytest.mark.parametrize(
    ("fields", "said"),
    [({"classes": 1}, "classes=1 must be at least 2"), ({"average": "micro", "classes": 3}, "average=micro is not")],
)
def test_a_score_that_is_not_defined_is_refused(fields: Any, said: str) -> None:
    from runner.metric.classification import Average

    if "average" in fields:
        fields = {**fields, "average": Average(fields["average"])}
    with pytest.raises(ValueError, match=said):
        Classification(**fields)


def test_a_filler_does_not_reach_a_metric() -> None:
    meter = ForeignMetric(target=F1).build(name="mine", on_device=True)
    outputs = {"preds": torch.tensor([0.9, 0.1]), "target": torch.tensor([1, 0])}
    wrong = {"preds": torch.tensor([0.1, 0.9]), "target": torch.tensor([1, 0])}
    meter.update(MicroBatchLoss(torch.tensor(1.0), 1, 2, False, {}, outputs))
    meter.update(MicroBatchLoss(torch.tensor(1.0), 0, 0, False, {}, wrong))
    meter.merge(SoloWorld(torch.device("cpu")))
    assert meter.compute() == {"mine": 1.0}


def test_a_hook_without_outputs_is_told() -> None:
    meter = ForeignMetric(target=f"{HERE}.share").build(name="mine", on_device=True)
    with pytest.raises(
        HookError, match=r"is fed with the output 'found', which the loss hook does not give. It gives n"
    ):
        meter.update(MicroBatchLoss(torch.tensor(1.0), 3, 3, True))


def test_results_become_numbers_by_name() -> None:
    assert named_values(torch.tensor(2), "m") == {"m": 2.0}
    assert named_values({"a": 1, "b": torch.tensor([3.0, 4.0])}, "m") == {"m/a": 1.0, "m/b/0": 3.0, "m/b/1": 4.0}
    with pytest.raises(HookError, match=r"metric.m returned a tensor of shape \[2, 2\] as m/c"):
        named_values({"c": torch.zeros(2, 2)}, "m")
