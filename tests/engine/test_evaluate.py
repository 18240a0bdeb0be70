"""Evaluations of whole runs: one set or several by name, and what meters add."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Ended

HOOKS = """
from runner import Data, Loss
from user_hooks import points

def named(sizes):
    return Data(train=points.Points(50, 0), eval={name: points.Points(size, 1) for name, size in sizes.items()})

def bad_name():
    return named({"a/b": 3})

def perplexed(model, batch):
    total, count, *_ = points.compute_loss(model, batch)
    return Loss(total, count, {"perplexity": (total.detach(), count)})
"""
PAIR = ["strategy=ddp", "hardware.processes=2"]


@pytest.fixture(autouse=True)
def hooks(project: Path) -> None:
    (project / "user_hooks" / "sets.py").write_text(HOOKS)


def evaluated(ended: Any) -> dict[str, Any]:
    return {name: value for line in ended.metrics() for name, value in line.items() if name.startswith("eval/")}


def sets(**sizes: Any) -> Any:
    written = ",".join(f"{name}:{size}" for name, size in sizes.items())
    return ["data._target_=user_hooks.sets.named", f"+data.sizes={{{written}}}", "run.steps=5", "hardware=cpu"]


@pytest.mark.parametrize("placed", [[], PAIR])
def test_each_named_set_is_measured_as_if_it_were_alone(runner: Callable[..., Ended], placed: Any) -> None:
    """17 points are the set that the recipe has, without a name."""
    plain = evaluated(runner("train", "points", "run.steps=5", "hardware=cpu", *placed))
    both = evaluated(runner("train", "points", *sets(one=1, all=17), "metric=[perplexity]", *placed))
    names = {"loss", "accuracy", "perplexity"}
    assert set(plain) == {"eval/loss", "eval/accuracy"}
    assert set(both) == {f"eval/{one}/{name}" for one in ("one", "all") for name in names}
    assert both["eval/all/loss"] == plain["eval/loss"]
    assert both["eval/all/accuracy"] == plain["eval/accuracy"]
    assert both["eval/one/accuracy"] in (0.0, 1.0)
    for one in ("one", "all"):
        assert both[f"eval/{one}/perplexity"] == math.exp(both[f"eval/{one}/loss"])


def test_early_stopping_lists_the_names_of_the_sets(runner: Callable[..., Ended]) -> None:
    options = ["callback=[early_stop]", "eval.every_steps=1"]
    ended = runner("train", "points", *sets(near=3, far=4), *options, code=3)
    assert "callback.early_stop.metric=eval/loss" in ended.stderr
    assert "eval/far/accuracy, eval/far/loss, eval/near/accuracy, eval/near/loss" in ended.stderr
    better = [*options, "callback.early_stop.metric=eval/far/loss"]
    assert runner("train", "points", *sets(near=3, far=4), *better).run_dir.read_status()["state"] == "done"


def test_a_bad_name_of_a_set_ends_the_run_before_its_first_step(runner: Callable[..., Ended]) -> None:
    ended = runner("train", "points", "data._target_=user_hooks.sets.bad_name", "hardware=cpu", code=5)
    assert "the data hook's eval has a set named 'a/b'" in ended.stderr


def test_two_metrics_of_one_name_are_told(runner: Callable[..., Ended]) -> None:
    options = ["metric=[perplexity]", "loss._target_=user_hooks.sets.perplexed", "hardware=cpu"]
    ended = runner("train", "points", *options, code=3)
    assert "metric.perplexity gives 'perplexity', and so does another metric or the loss hook" in ended.stderr


def test_a_set_has_its_own_cadence_metrics_and_prefix(runner: Callable[..., Ended]) -> None:
    """And early stopping waits for the evaluations of its set."""
    own = "+eval.sets={far:{every_steps:3,metrics:[],prefix:test},near:{every_steps:2}}"
    options = ["metric=[perplexity]", own, "eval.every_steps=null", "callback=[early_stop]", "checkpoint=none"]
    stop = ["callback.early_stop.metric=test/loss", "callback.early_stop.patience=9"]
    ended = runner("train", "points", *sets(near=3, far=4), *options, *stop, "run.steps=7")
    found = {line["step"]: {name for name in line if not name.startswith("train/")} for line in ended.metrics()}
    near, far = {"eval/near/loss", "eval/near/accuracy", "eval/near/perplexity"}, {"test/loss", "test/accuracy"}
    evaluated = {step: names - {"step"} for step, names in found.items() if names != {"step"}}
    assert evaluated == {2: near, 3: far, 4: near, 6: near | far, 7: near | far}


def test_what_a_recipe_says_wrongly_of_sets_is_told(runner: Callable[..., Ended]) -> None:
    own = "+eval.sets={far:{every_step:3},near:{every_steps:0},one:{prefix:train/x},two:{prefix:a//b},three:4}"
    told = runner("train", "points", own, code=2).stderr
    assert "eval.sets.far.every_step: EvalSet has no such key. Did you mean every_steps?" in told
    assert "eval.sets.near.every_steps: every_steps=0 is too small: it must be at least 1, same, or null." in told
    assert "eval.sets.one.prefix: prefix='train/x' is what training's own values are called." in told
    assert "eval.sets.two.prefix: prefix='a//b' must be letters, digits" in told
    assert "eval.sets.three: 4 must be a mapping" in told
    told = runner("train", "points", "+eval.sets={far:{metrics:[perplexiti]}}", "metric=[perplexity]", code=2).stderr
    assert "eval.sets.far.metrics: the recipe has no metric 'perplexiti'. Did you mean perplexity?" in told
