"""What a run starts from: the hooks' own objects, seeded alike on all ranks; and what a hook may not return."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.conftest import Ended
from tests.parity.options import STRATEGIES, placed, tensors

SEEDED = '''
import json
import os
import random
from pathlib import Path

import numpy
import torch
from torch import nn
from user_hooks.points import build_data as points, mean_loss

from runner import Data


def note(name, value):
    with Path(f"drawn_{os.environ.get('RANK', '0')}.jsonl").open("a") as file:
        file.write(json.dumps([name, value]) + "\\n")


def draw():
    mask = nn.functional.dropout(torch.ones(40))
    return [random.random(), numpy.random.random(), torch.rand(()).item(), mask.tolist()]


def build_data():
    note("data", draw())
    return Data(train=points().train)


def build_model():
    """An odd width, so that no shard is even; parameters are drawn from two generators."""
    model = nn.Sequential(nn.Linear(2, 7), nn.Tanh(), nn.Linear(7, 2))
    with torch.no_grad():
        model[2].bias += random.random()
    return model


def loss(model, batch):
    note("step", draw())
    return mean_loss(model, batch)
'''
HOOKS = [
    *("model._target_=user_hooks.seeded.build_model", "~model.dropout"),
    *("data._target_=user_hooks.seeded.build_data", "loss._target_=user_hooks.seeded.loss"),
    *("run.steps=2", "eval.every_steps=null", "eval.at_end=false"),
]
STILL = ["optimizer=sgd", "optimizer.lr=0.0"]  # the weights stay as they began


@pytest.fixture
def train(project: Path, runner: Callable[..., Ended]) -> Callable[..., Ended]:
    """Train with the hooks that note what they draw."""
    (project / "user_hooks" / "seeded.py").write_text(SEEDED)

    def run(*options: str) -> Ended:
        for old in project.glob("drawn_*.jsonl"):
            old.unlink()
        return runner("train", "points", *HOOKS, *options, timeout_s=120)

    return run


def drawn(project: Path, name: str, rank: int = 0) -> list[Any]:
    """What the hooks of this rank drew, in order."""
    lines = [json.loads(line) for line in (project / f"drawn_{rank}.jsonl").read_text().splitlines()]
    return [value for found, value in lines if found == name]


def seeded_weights(seed: int) -> dict[str, Tensor]:
    """The model that torch and Python make after these two lines, as any script would."""
    torch.manual_seed(seed)
    random.seed(seed)
    model = nn.Sequential(nn.Linear(2, 7), nn.Tanh(), last := nn.Linear(7, 2))
    with torch.no_grad():
        last.bias.add_(random.random())
    return {f"model.{name}": tensor for name, tensor in model.state_dict().items()}


NEIGHBOURS = ("fsdp_grad_op", "hsdp", "hsdp_grad_op", "deepspeed_zero1", "deepspeed_zero2", "diloco")
"""Strategies that build a model as another one does: fsdp, deepspeed_zero3, local_sgd."""

# ── Seeds ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "strategy",
    [  # tests/parity/test_options.py compares the losses of all
        pytest.param(name, marks=pytest.mark.exhaustive if name in NEIGHBOURS else ()) for name in STRATEGIES
    ],
)
def test_the_first_weights_are_those_of_a_script_with_the_seed_of_the_run(
    train: Callable[..., Ended], strategy: str
) -> None:
    alone = ["strategy.init_sync=false"] if strategy == "ddp" else []  # no rank may lean on another's weights
    ended = train(*STILL, *placed(strategy, 2), *alone, "run.seed=3")
    found, expected = tensors(ended, 2), seeded_weights(3)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize("strategy", ["ddp", "fsdp", "deepspeed_zero2"])
def test_ranks_draw_apart_in_training_and_alike_in_their_hooks(
    train: Callable[..., Ended], project: Path, strategy: str
) -> None:
    train(*placed(strategy, 2))
    assert drawn(project, "data", 0) == drawn(project, "data", 1)
    steps = [*drawn(project, "step", 0), *drawn(project, "step", 1)]
    assert len(steps) == 4
    for each in zip(*steps, strict=True):
        assert len({json.dumps(value) for value in each}) == 4, "another number on every rank, in every step"
    train(*placed(strategy, 2))
    assert [*drawn(project, "step", 0), *drawn(project, "step", 1)] == steps, "and the same ones in every run"


def test_what_building_the_model_draws_does_not_shift_what_training_draws(
    train: Callable[..., Ended], project: Path
) -> None:
    train()
    steps, weights = drawn(project, "step"), (project / "user_hooks" / "seeded.py").read_text()
    (project / "user_hooks" / "seeded.py").write_text(
        weights.replace("    return model\n", "    draw()\n    return model\n")
    )
    train()
    assert drawn(project, "step") == steps


def test_another_seed_gives_other_weights_and_other_draws(train: Callable[..., Ended], project: Path) -> None:
    one = tensors(train(*STILL, "run.seed=1"), 2)
    draws = drawn(project, "step")
    other = tensors(train(*STILL, "run.seed=2"), 2)
    assert not any(torch.equal(one[name], other[name]) for name in one)
    assert not any(mine == theirs for mine, theirs in zip(draws[0], drawn(project, "step")[0], strict=True))


# ── Wrong hooks ─────────────────────────────────────────────────────────────────────────────────────────────────────

WRONG = [
    ("model", "not_a_module", 3, "user_hooks.wrong.not_a_module returned a Tensor, but must return a torch.nn.Module"),
    ("model", "no_parameters", 4, "returned a model without parameters: there is nothing to train"),
    ("model", "frozen", 4, "the model has no parameter that requires a gradient: there is nothing to train"),
    ("data", "a_tuple", 3, "returned a tuple, but must return runner.Data(train=…, eval=…)"),
    ("data", "empty", 5, "the data hook's 'train' dataset is empty. Return at least one item"),
    ("data", "without_eval", 5, "eval.every_steps is set, but user_hooks.wrong.without_eval returned no eval dataset"),
    ("loss", "metric_no_pair", 3, "metric 'accuracy' is a Tensor, but must be a pair (sum, count)"),
    (
        "loss",
        "metric_of_many",
        3,
        "metric 'accuracy' holds a tensor of shape [12], but sum and count must be one number",
    ),
    ("loss", "metric_named_loss", 3, "a metric named 'loss', which Loss.total has already. Rename it"),
    ("loss", "imports_nothing", 1, "No module named 'no_such_module_anywhere'"),
]


@pytest.mark.parametrize(("hook", "name", "code", "message"), WRONG, ids=[name for _, name, *_ in WRONG])
def test_a_wrong_hook_is_told(runner: Callable[..., Ended], hook: str, name: str, code: int, message: str) -> None:
    wrong = [f"{hook}._target_=user_hooks.wrong.{name}"] + (["~model.dropout"] if hook == "model" else [])
    failed = runner("train", "points", "run.steps=2", *wrong, code=code)
    assert message in failed.stderr
    assert failed.run_dir.read_status()["state"] == "failed"
