"""The sections `models` and `phases`: what is built of them, and every fault."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from runner.composition.compose import compose
from runner.composition.find_recipe import find
from runner.config.run_spec import RunSpec
from runner.errors import SpecError

HOOKS = """
def build(width=3): ...
def data(): ...
def both(left, right, batch, *, weight=1.0): ...
def left_only(batch, left): ...
def neither(batch): ...
def another(left, wrong, batch): ...
"""
RECIPE = """
defaults: [base, _self_]
name: two
models:
  left: {model: {_target_: models_hooks.build}}
  right: {model: {_target_: models_hooks.build, width: 4}}
data: {_target_: models_hooks.data}
loss: {_target_: models_hooks.both}
batch: {items: 12}
run: {steps: 5}
"""
PHASES = (
    "+phases.first={loss: {_target_: models_hooks.both}, updates: [left]}",
    "+phases.second={loss: {_target_: models_hooks.both}, updates: [right], rounds: 3}",
)
Read = Callable[..., RunSpec]


@pytest.fixture
def composed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Read:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipes").mkdir()
    (tmp_path / "models_hooks.py").write_text(HOOKS)
    (tmp_path / "recipes" / "two.yaml").write_text(RECIPE)
    return lambda *overrides: compose(find("two"), list(overrides)).read()


def test_a_model_has_the_parts_of_the_run_but_for_its_own(composed: Read) -> None:
    own = "+models.right.optimizer={_target_: runner.optimizer.sgd.SGD, lr: 0.5}"
    spec = composed("+models.left.optimizer.lr=0.25", own, "+models.right.schedule.warmup_steps=2", "schedule=cosine")
    left, right = (spec.models[name] for name in ("left", "right"))
    assert spec.model is None
    assert left.strategy is right.strategy is spec.strategy
    optimizers: list[Any] = [spec.optimizer, left.optimizer, right.optimizer]
    assert [type(one).__name__ for one in optimizers] == ["AdamW", "AdamW", "SGD"]
    assert [one.lr for one in optimizers] == [0.001, 0.25, 0.5]
    assert optimizers[1].betas == optimizers[0].betas
    schedules: Any = [spec.schedule, left.schedule, right.schedule]
    assert [type(one).__name__ for one in schedules] == ["Cosine"] * 3
    assert schedules[2] == replace(schedules[0], warmup_steps=schedules[2].warmup_steps)
    assert {key: hook.target for key, hook in spec.hooks.items()} == {
        "models.left.model": "models_hooks.build",
        "models.right.model": "models_hooks.build",
        "data": "models_hooks.data",
        "loss": "models_hooks.both",
    }
    alone = spec.of_model("right")
    assert (alone.model, alone.optimizer, alone.models) == (right.model, right.optimizer, {})


def test_an_option_of_a_group_goes_to_a_model_by_hydras_own_syntax(composed: Read) -> None:
    spec: Any = composed("+strategy@models.left.strategy=ddp", "+models.right.frozen=true")
    assert type(spec.models["left"].strategy).__name__ == "DDP"
    assert spec.models["right"].strategy is spec.strategy


def test_phases_are_in_their_order(composed: Read) -> None:
    spec = composed(*PHASES, "loss._target_=null")
    assert spec.loss is None
    assert [(name, phase.updates, phase.rounds) for name, phase in spec.phases.items()] == [
        ("first", ("left",), 1),
        ("second", ("right",), 3),
    ]


@pytest.mark.parametrize(
    ("overrides", "key", "said"),
    [
        (["model._target_=models_hooks.build"], "model._target_", "is one model, and `models` names others"),
        (["~models", "model._target_=models_hooks.build", PHASES[0]], "phases", "the recipe has one"),
        (["+models.to-o={model: {_target_: models_hooks.build}}"], "models.to-o", "other than batch, world."),
        (["+models.batch={model: {_target_: models_hooks.build}}"], "models.batch", "other than batch, world."),
        (["+models.left.frozen=true", "+models.right.frozen=true"], "models", "there is nothing to train"),
        (["+models.left={frozen: true, optimizer: {lr: 1}}"], "models.left.optimizer", "of no use to a model with"),
        (["+models.left.frozn=true"], "models.left.frozn", "Did you mean frozen?"),
        (["models.left.model._target_=models_hooks.biuld"], "models.left.model._target_", "Did you mean build?"),
        (["+models.left.model.widht=3"], "models.left.model.widht", "Did you mean width?"),
        (["+models.left.optimizer.beta=3"], "models.left.optimizer.beta", "Did you mean betas?"),
        (["loss._target_=models_hooks.another"], "loss.wrong", "needs 'wrong', which is not given"),
        (["loss._target_=models_hooks.neither"], "loss._target_", "a parameter called left or right"),
        (["+loss.left=3"], "loss.left", "gets left from the runner"),
        ([PHASES[0]], "models.right", "is updated by no phase"),
        ([*PHASES, "phases.first.loss._target_=models_hooks.boht"], "phases.first.loss._target_", "Did you mean both?"),
        (["loss._target_=models_hooks.boht"], "loss._target_", "Did you mean both?"),
        ([*PHASES, "phases.first.updates=[lift]"], "phases.first.updates", "Did you mean left?"),
        ([*PHASES, "phases.first.updates=[]"], "phases.first.updates", "There are: left, right"),
        ([*PHASES, "phases.first.updates=[right,left]"], "phases.second.updates", "shares right with phases.first"),
        ([*PHASES, "+phases.first.rounds=0"], "phases.first.rounds", "must be at least 1"),
        (
            [*PHASES, "phases.second.loss._target_=models_hooks.left_only"],
            "phases.second.loss._target_",
            "called right",
        ),
        ([*PHASES, "guard.non_finite=skip"], "guard.non_finite", "Use stop or ignore"),
        ([*PHASES, "batch.micro_items=auto"], "batch.micro_items", "this recipe has phases"),
        (
            ["+models.right.precision._target_=runner.precision.bf16.BF16"],
            "models.right.precision",
            "in phases of their",
        ),
        (
            ["hardware=cpu", "hardware.processes=2", "strategy=parallel", "strategy.tensor=2"],
            "strategy",
            "along tensor",
        ),
        (["hardware=cpu", "hardware.processes=2", "strategy=local_sgd"], "strategy", "in replicas that take steps"),
        (
            ["hardware=cpu", "hardware.processes=2", "strategy=ddp", "+strategy@models.left.strategy=single"],
            "models.left.strategy",
            "single runs in one process",
        ),
    ],
)
def test_a_fault_names_the_model_and_a_way_out(composed: Read, overrides: list[str], key: str, said: str) -> None:
    with pytest.raises(SpecError) as caught:
        composed(*overrides)
    found = [fault.message for fault in caught.value.faults if fault.key == key]
    assert any(said in message for message in found), caught.value.faults


def test_hooks_that_may_not_be_imported_are_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipes").mkdir()
    (tmp_path / "unwanted_hooks.py").write_text("open('imported', 'w').close()\n" + HOOKS)
    (tmp_path / "recipes" / "two.yaml").write_text(RECIPE.replace("models_hooks", "unwanted_hooks"))
    for overrides in ((), [one.replace("models_hooks", "unwanted_hooks") for one in PHASES]):
        assert list(compose(find("two"), overrides).read_without_imports().models) == ["left", "right"]
    assert not (tmp_path / "imported").exists()


def test_a_file_that_a_model_or_all_of_them_name_is_read_before_launch(composed: Read, tmp_path: Path) -> None:
    for name, size in ("own", 1_000_000), ("shared", 2_000_000):
        content = {"zero_optimization": {"stage": 2, "reduce_bucket_size": size}}
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    spec = composed(
        "hardware=cpu",
        "strategy=deepspeed_zero2",
        "strategy.config_file=shared.json",
        "+models.right.strategy.config_file=own.json",
        *PHASES,
    )
    for file in tmp_path.glob("*.json"):
        file.unlink()  # workers of a run, and those that resume it, need no file
    strategies: list[Any] = [one.strategy for one in spec.models.values()]
    read = [one.config_file.content["zero_optimization"]["reduce_bucket_size"] for one in strategies]
    assert read == [2_000_000, 1_000_000]
    frozen = [spec.config["strategy"], spec.config["models"]["right"]["strategy"]]
    assert [node["config_file"]["content"]["zero_optimization"]["reduce_bucket_size"] for node in frozen] == [
        2_000_000,
        1_000_000,
    ]


def test_a_model_names_a_file_that_is_not_there(composed: Read) -> None:
    with pytest.raises(SpecError, match=r"models\.right\.strategy\.config_file"):
        composed("hardware=cpu", "strategy=deepspeed_zero2", "+models.right.strategy.config_file=nowhere.json", *PHASES)
