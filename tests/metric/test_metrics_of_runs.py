"""Metrics fed with the loss hook's outputs: one value, however many ranks evaluated the items."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Ended
from tests.parity.options import placed

HOOKS = '''
import json
import math
from torch.nn import functional as F
from runner import Loss

def loss(model, batch):
    x, y, weight = batch
    scores = model(x)
    total = F.cross_entropy(scores, y, reduction="sum")
    words = [str(one) for one in x[:, 0].tolist()]
    outputs = {"preds": scores.softmax(1)[:, 1], "target": y, "group": weight, "words": words, "across": x[:, 1]}
    return Loss(total, len(y), {}, outputs)

def uncounted(model, batch):
    return loss(model, batch)._replace(count=0)

def short(model, batch):
    return loss(model, batch)._replace(outputs={"preds": batch[0][1:]})

def ordered(words, score, target, *, path):
    """Depends on the order of the items, and keeps them for the test."""
    with open(path, "w") as file:
        json.dump({"words": words, "preds": score.tolist(), "target": target.tolist()}, file)
    return {"sum": math.fsum(index * float(word) for index, word in enumerate(words)), "items": len(words)}
'''
RECIPE = """
defaults: [points, override metric: [f1, perplexity], _self_]
loss: {_target_: user_hooks.measured.loss}
metric:
  area: {_target_: torchmetrics.classification.BinaryAUROC, inputs: {preds: preds}}
  each: {_target_: torchmetrics.classification.MulticlassRecall, num_classes: 2, average: none, inputs: {preds: target}}
  ranking: {_target_: torchmetrics.retrieval.RetrievalMAP, inputs: {indexes: group}}
  correlation: {_target_: torchmetrics.PearsonCorrCoef, inputs: {target: across}}
  named:
    _target_: torchmetrics.wrappers.ClasswiseWrapper
    metric: {_target_: torchmetrics.classification.MulticlassRecall, num_classes: 2, average: none}
    inputs: {preds: target, target: target}
  ordered: {_target_: user_hooks.measured.ordered, path: kept.json, inputs: {score: preds}}
batch: {items: 4}
run: {steps: 1}
eval: {every_steps: null, at_start: true, at_end: false, micro_items: 2}
"""
TRAIN = ["train", "measured", "hardware=cpu", "hardware.threads=1"]


@pytest.fixture(autouse=True)
def files(project: Path) -> None:
    (project / "user_hooks" / "measured.py").write_text(HOOKS)
    (project / "recipes" / "measured.yaml").write_text(RECIPE)


def measured(ended: Ended) -> dict[str, Any]:
    """17 items in micro-batches of 2: on two ranks, the last one is evaluated by rank 0 while rank 1 has a filler."""
    lines = [json.loads(line) for line in ended.run_dir.metrics.read_text().splitlines()]
    return {name: value for line in lines for name, value in line.items() if name.startswith("eval/")}


@pytest.mark.parametrize(
    "strategies",
    [("ddp", "fsdp"), pytest.param(("deepspeed_zero2", "deepspeed_zero3"), marks=pytest.mark.exhaustive)],
    ids=" ".join,
)
def test_two_ranks_measure_what_one_does(runner: Callable[..., Ended], project: Path, strategies: Any) -> None:
    """Every micro-batch has the same shape on one rank and on two, so equal means equal to the last digit."""
    from sklearn.metrics import f1_score, roc_auc_score  # 1.5 s of CPU, and memory that each fork copies

    alone = measured(runner(*TRAIN))
    kept = json.loads((project / "kept.json").read_text())
    for strategy in strategies:
        (project / "kept.json").unlink()
        assert measured(runner(*TRAIN, *placed(strategy, 2))) == alone
        assert json.loads((project / "kept.json").read_text()) == kept
    assert alone["eval/f1"] == pytest.approx(f1_score(kept["target"], [score > 0.5 for score in kept["preds"]]))
    assert alone["eval/area"] == pytest.approx(roc_auc_score(kept["target"], kept["preds"]))
    assert alone["eval/each/0"] == alone["eval/each/1"] == alone["eval/named/multiclassrecall_0"] == 1.0
    assert alone["eval/ordered/items"] == len(kept["words"]) == 17
    assert {"eval/perplexity", "eval/ranking", "eval/correlation"} < set(alone)


def test_an_output_that_the_hook_does_not_give_is_told_with_those_that_it_gives(runner: Callable[..., Ended]) -> None:
    ended = runner(*TRAIN, "metric.area.inputs.preds=score", code=3)
    assert "metric.area is fed with the output 'score', which the loss hook does not give" in ended.stderr
    assert "It gives: preds, target, group, words, across." in ended.stderr


def test_an_output_of_another_length_is_told(runner: Callable[..., Ended]) -> None:
    ended = runner(*TRAIN, "loss._target_=user_hooks.measured.short", code=3)
    assert "the output 'preds' has the shape [1, 2], but the micro-batch has 2 items." in ended.stderr


def test_a_count_of_zero_in_every_rank_is_told(runner: Callable[..., Ended]) -> None:
    ended = runner(*TRAIN, "loss._target_=user_hooks.measured.uncounted", code=3)
    assert "eval/loss has no value: the loss hook's count was 0 in every micro-batch of every rank" in ended.stderr
