"""Hooks and listeners that ask for the ranks of their run get them; an uneven step is that of one process."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Ended

HOOKS = [
    "model._target_=user_hooks.paired.build_model",
    "~model.dropout",
    "data._target_=user_hooks.paired.build_data",
    "batch.items=8",  # of 13: the second step of an epoch has 5
    "run.steps=4",
    "eval.micro_items=8",
    "clip.norm=1.0",
]
LISTENER = """
from dataclasses import dataclass
from typing import final


@final
@dataclass(frozen=True, kw_only=True)
class Meeting:
    def check(self, spec):
        return ()

    def build(self):
        return Meets()


@final
class Meets:
    def before_run(self, run, world):
        self._trigger = world.trigger()

    def after_step(self, run, world):
        if world.is_last and run.progress.step == 3:
            self._trigger.set()

    def after_eval(self, run, metrics, world):
        world.log_in_order(f"says {sorted(metrics)}")
        return "the last rank has had enough" if self._trigger.check() else None
"""
TWO = ["hardware.processes=2", "eval.every_steps=1"]


def loss(name: str) -> str:
    return f"loss._target_=user_hooks.paired.{name}"


def recorded(ended: Ended) -> list[Any]:
    names = ("step", "train/loss", "train/grad_norm", "eval/loss")
    return [[line[name] for name in names if name in line] for line in ended.metrics()]


def test_a_gathered_loss_on_two_ranks_is_that_of_one_process(runner: Callable[..., Ended], project: Path) -> None:
    alone = recorded(runner("train", "points", *HOOKS, loss("plain_loss"), "eval.every_steps=1"))
    assert len(alone) == 8, "four steps and four evaluations"
    for strategy in ("ddp", "deepspeed_zero3"):
        pair = runner("train", "points", *HOOKS, loss("gathered_loss"), *TWO, f"strategy={strategy}", timeout_s=120)
        for one, other in zip(alone, recorded(pair), strict=True):
            assert one == pytest.approx(other, rel=2e-5)  # float32 sums in another order, through four steps of Adam


def test_a_listener_gets_the_ranks_too(runner: Callable[..., Ended], project: Path) -> None:
    (project / "user_hooks" / "meeting.py").write_text(LISTENER)
    (project / "conf" / "callback").mkdir(parents=True)
    option = "# @package callback.meeting\n_target_: user_hooks.meeting.Meeting\n"
    (project / "conf" / "callback" / "meeting.yaml").write_text(option)
    ended = runner("train", "points", *HOOKS, loss("gathered_loss"), *TWO, "strategy=ddp", "callback=[meeting]")
    assert ended.metrics()[-1]["step"] == 3, "the trigger ended the run"
    said = [line.split(" | ")[-1] for line in ended.run_dir.rank_log(0).read_text().splitlines() if "says" in line]
    assert said == ["rank 0: says ['eval/loss']", "rank 1: says ['eval/loss']"] * 3


def test_ranks_that_call_different_collectives_in_an_uneven_step_are_named(runner: Callable[..., Ended]) -> None:
    ended = runner("train", "points", *HOOKS, loss("unpaired"), *TWO, "strategy=ddp", code=10)
    assert re.search(r"rank 0: gather of a tensor float32\[3, 2\], at .*paired\.py:\d+ in unpaired", ended.stderr)
    assert re.search(r"rank 1: reduce\(sum\) of a tensor float32\[2\], at .*paired\.py:\d+ in unpaired", ended.stderr)


def test_the_ranks_are_not_the_recipes_to_give(runner: Callable[..., Ended]) -> None:
    ended = runner("check", "points", *HOOKS, loss("gathered_loss"), "+loss.world=2", "--build", code=2)
    assert "loss.world: user_hooks.paired.gathered_loss(model, batch, world) gets world from the runner" in ended.stderr
    checked = runner("check", "points", *HOOKS, loss("gathered_loss"), *TWO, "strategy=ddp", "--build")
    assert "nothing is wrong" in checked.stdout
