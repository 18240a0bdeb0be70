"""Faults that show only on the model are found before launch: exit code 2, and no run directory."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Ended

TOWER = ["model._target_=user_hooks.tower.build_model", "~model.dropout"]
UNNAMED = [*TOWER, "+model.names_blocks=false"]
FSDP = "strategy=fsdp"
MOE = ("strategy=deepspeed_zero3", "strategy.moe_leaf_modules=[Experts]")
BUILD = {"train": (), "check": ("--build",)}
CHECKPOINTED = "activation_checkpointing.what=blocks"


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (
            [*TOWER, CHECKPOINTED, "blocks.classes=[Blok]"],
            "blocks.classes: ['Blok'] are not classes of modules of this",
        ),
        ([*UNNAMED, CHECKPOINTED], "blocks.classes: which modules are blocks? The model has no _no_split_modules."),
        ([*UNNAMED, "compile.what=blocks", "compile.backend=eager"], "blocks.classes: which modules are blocks?"),
        (
            [*TOWER, FSDP, "strategy.wrap=classes", "strategy.wrap_classes=[Blok]"],
            "strategy.wrap_classes: ['Blok'] are",
        ),
        (
            [*UNNAMED, FSDP, "strategy.wrap=no_split"],
            "strategy.wrap: no_split, but the model names no classes of its own",
        ),
        (
            ["compile.what=model", "compile.backend=inducter"],
            "compile.backend: inducter: there is no such backend. Did",
        ),
        (["compile.what=model", "compile.mode=fast"], "compile.mode: fast: there is no such mode."),
        (
            ["optimizer.groups=[{match: tail, lr_factor: 0.1}]"],
            "optimizer.groups: 'tail' matches no trainable parameter",
        ),
    ],
)
@pytest.mark.parametrize("verb", ["train", "check"])
def test_the_launching_process_says_so(
    runner: Callable[..., Ended], project: Path, verb: str, argv: Any, said: str
) -> None:
    ended = runner(verb, "points", *argv, *BUILD[verb], code=2)
    assert f"\n{said}" in f"\n{ended.stderr}"
    assert not (project / "outputs").exists()


def test_resuming_checks_the_model_too(runner: Callable[..., Ended]) -> None:
    run = str(runner("train", "points", "run.steps=4", "run.stop_at_step=2").run_dir.path)
    ended = runner("resume", run, "compile.what=blocks", "compile.backend=eager", code=2)
    assert "\nblocks.classes: which modules are blocks?" in ended.stderr


def test_they_are_told_with_all_other_faults(runner: Callable[..., Ended]) -> None:
    argv = [*TOWER, CHECKPOINTED, "blocks.classes=[Blok]", FSDP, "schedule=cosine", "schedule.warmup_steps=99"]
    argv += ["compile.what=model", "compile.backend=inducter"]
    ended = runner("check", "points", *argv, "--build", code=2)
    keys = {line.partition(":")[0] for line in ended.stderr.splitlines() if not line.startswith(" ")}
    assert keys == {"blocks.classes", "strategy.wrap_classes", "schedule.warmup_steps", "compile.backend"}


@pytest.mark.parametrize("verb", ["train", "check"])
def test_a_model_that_needs_values_is_left_to_the_workers(runner: Callable[..., Ended], verb: str) -> None:
    by_value = ["model._target_=user_hooks.points.build_by_value", CHECKPOINTED]
    code = 0 if verb == "check" else 2
    ended = runner(verb, "points", *by_value, "blocks.classes=[Blok]", *BUILD[verb], code=code)
    assert verb == "check" or "['Blok'] are not classes of modules of this model" in ended.stderr


def test_a_model_that_nothing_is_asked_of_is_not_built(runner: Callable[..., Ended], project: Path) -> None:
    hooks = project / "user_hooks" / "points.py"
    hooks.write_text(hooks.read_text().replace("    return nn.Seq", "    print('built')\n    return nn.Seq"))
    asked = ["compile.what=blocks", "blocks.classes=[Linear]"]
    assert "built" not in runner("check", "points", FSDP, "--build").stdout
    assert "built" not in runner("check", "points", *asked).stdout
    assert runner("check", "points", *asked, "--build").stdout.count("built") == 1


def test_a_backend_that_the_hook_registers_is_accepted(runner: Callable[..., Ended], project: Path) -> None:
    hooks = project / "user_hooks" / "points.py"
    register = "    torch._dynamo.register_backend(lambda graph, _: graph, name='own')\n    return nn.Seq"
    hooks.write_text(hooks.read_text().replace("    return nn.Seq", register))
    runner("train", "points", "compile.what=model", "compile.backend=own", "run.steps=1")


def test_a_class_that_the_precision_puts_in_is_accepted(runner: Callable[..., Ended]) -> None:
    pytest.importorskip("torchao")
    argv = [*TOWER, "+model.width=16", "precision=fp8", CHECKPOINTED, "blocks.classes=[Float8Linear]"]
    assert "nothing is wrong" in runner("check", "points", *argv, "--build").stdout


def test_a_float8_run_that_would_convert_nothing_is_refused(runner: Callable[..., Ended], project: Path) -> None:
    pytest.importorskip("torchao")
    ended = runner("train", "points", "precision=fp8", code=2)
    assert "\nprecision: precision=fp8 would convert no layer of this model." in ended.stderr
    assert not (project / "outputs").exists()


def test_mixture_of_experts_blocks_that_are_not_there_are_refused(runner: Callable[..., Ended]) -> None:
    pytest.importorskip("deepspeed")
    ended = runner("check", "points", *MOE, "--build", code=2)
    assert ended.stderr.startswith("strategy.moe_leaf_modules: ['Experts'] are not classes of modules of this model.")


def test_a_hook_that_ends_its_process_is_left_to_the_workers(runner: Callable[..., Ended], project: Path) -> None:
    hooks = project / "user_hooks" / "points.py"
    leave = "    if torch.empty(0).is_meta:\n        os._exit(7)\n    return nn.Seq"
    hooks.write_text(hooks.read_text().replace("    return nn.Seq", leave))
    runner("check", "points", CHECKPOINTED, "blocks.classes=[Linear]", "--build")
