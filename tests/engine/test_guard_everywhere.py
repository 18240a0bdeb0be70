"""The guard points at step, rank, items and module however a model is shaped and cut, whatever it computes in."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import Ended
from tests.engine.test_guard import PAIR, SICK, TRAIN, finite, guarded, sick_step
from tests.parity.options import tensors

FP16 = "precision=fp16"
COMPILED = ["compile.what=model", "compile.backend=aot_eager"]  # inductor's own front, without a C++ compiler
MADE = {"divide": ("loss", "middle (Divide)"), "root": ("gradient", "middle (Root)")}
SHAPES = {
    "compiled whole": COMPILED,
    "compiled by block": ["compile.what=blocks", "compile.backend=aot_eager"],
    "recomputed": ["activation_checkpointing.what=blocks"],
    "recomputed in part": ["activation_checkpointing.what=selective"],
    "recomputed and compiled": [*COMPILED, "activation_checkpointing.what=blocks"],
    "bf16": ["precision=bf16"],
    "bf16_pure": ["precision=bf16_pure"],
}


def shapes() -> Iterator[Any]:
    """Every shape with a loss or a gradient, the other one in the exhaustive suite."""
    for number, shape in enumerate(SHAPES):
        for turn, middle in enumerate(MADE):
            yield pytest.param(shape, middle, marks=() if number % 2 == turn else (pytest.mark.exhaustive,))


def the_finding(run_dir: Any) -> Any:
    """The one step that was not finite, and the one micro-batch of it."""
    (event,) = json.loads((run_dir / "guard.json").read_text())
    (found,) = event["found"]
    return event["step"], found


@pytest.mark.parametrize(("shape", "middle"), [*shapes()])
def test_however_a_model_is_shaped_the_module_is_found(
    project: Path, runner: Callable[..., Ended], shape: str, middle: str
) -> None:
    step, rank, number, items = sick_step(micro_items=4)
    options = [*SHAPES[shape], f"+model.middle={middle}", f"blocks.classes=[{middle.capitalize()}]"]
    where = project / "run"
    ended = runner(*TRAIN, *options, "batch.micro_items=4", f"run.dir={where}", code=6)
    at, found = the_finding(where)
    assert (at, found["rank"], found["micro_batch"], found["items"]) == (step, rank, number, items)
    assert (found["what"], found["module"]) == MADE[middle]
    assert f"step {step} is not finite. On rank 0, micro-batch {number}, items" in ended.stderr


@pytest.mark.parametrize("strategy", ["fsdp", "ddp"])
def test_the_rank_that_read_the_item_is_named_though_the_gradient_lies_on_the_other(
    project: Path, runner: Callable[..., Ended], strategy: str
) -> None:
    # The last row of a weight is spoilt: under fsdp that is in the shard of rank 1, while rank 0 has read the item.
    step, rank, _, items = sick_step(ranks=2, micro_items=6)
    assert rank == 0
    where = project / "run"
    options = [f"strategy={strategy}", "hardware.processes=2", "+model.middle=root_of_last", f"run.dir={where}"]
    runner(*TRAIN, *options, code=6)
    at, found = the_finding(where)
    assert (at, found["rank"], found["items"], found["what"]) == (step, rank, items, "gradient")
    assert found["module"] == "middle (RootOfLast)"


def test_a_compiled_model_that_was_looked_into_goes_on_as_it_was(project: Path, runner: Callable[..., Ended]) -> None:
    options = ["guard.non_finite=skip", "run.steps=9"]
    eager = runner(*TRAIN, *options, f"run.dir={project / 'eager'}")
    compiled = runner(*TRAIN, *options, *COMPILED, f"run.dir={project / 'compiled'}")
    assert guarded(compiled) == guarded(eager)
    theirs = tensors(eager, 9)
    for name, tensor in tensors(compiled, 9).items():
        torch.testing.assert_close(tensor, theirs[name], rtol=0, atol=1e-6)  # fused, sums round otherwise


# ── Under a loss scale ──────────────────────────────────────────────────────────────────────────────────────────────


def test_a_step_that_overflows_under_its_scale_is_nobodys_fault(runner: Callable[..., Ended]) -> None:
    for guard in ("stop", "skip"):
        ended = runner("train", "points", FP16, "precision.init_scale=1e9", f"guard.non_finite={guard}")
        assert not ended.run_dir.guard.exists()
        assert ended.run_dir.read_status()["step"] == 10
        assert ended.metrics()[-2]["train/skipped_steps"] > 11


@pytest.mark.parametrize("saved", ["checkpoint.every_steps=null", "checkpoint.every_steps=1"])
@pytest.mark.parametrize("where", ["strategy=single", "strategy=ddp", "strategy=fsdp"])
def test_a_loss_that_is_not_finite_stops_a_scaled_run_too(
    project: Path, runner: Callable[..., Ended], where: str, saved: str
) -> None:
    ranks = 1 if where == "strategy=single" else 2
    _, rank, _, _ = sick_step(ranks=ranks, micro_items=3)
    options = [FP16, where, f"hardware.processes={ranks}", "batch.micro_items=3", saved]
    # 10⁶ overflows in a few steps on the way, which are skipped again when they are taken again.
    ended = runner(*TRAIN, *options, "precision.init_scale=1e6", f"run.dir={project / 'run'}", code=6)
    assert "step skipped: a gradient overflowed" in ended.stderr
    assert f"is not finite. On rank {rank}, micro-batch" in ended.stderr
    _, found = the_finding(project / "run")
    assert (found["rank"], found["what"], found["module"]) == (rank, "loss", "middle (Divide)")
    assert SICK in found["items"]


def test_a_loss_that_is_not_finite_between_two_boundaries_is_seen_when_its_step_is_left_out(
    project: Path, runner: Callable[..., Ended]
) -> None:
    step, *_ = sick_step()
    assert step == 4
    common = [*TRAIN, FP16, "precision.init_scale=1024", "log.every_steps=9", "checkpoint.every_steps=null"]
    ended = runner(*common, f"run.dir={project / 'run'}", code=6)
    assert f"step {step} is not finite: repeating steps 1 to {step} to find" in ended.stderr
    at, found = the_finding(project / "run")
    assert (at, found["module"]) == (step, "middle (Divide)")


def test_a_run_of_which_no_step_is_finite_says_so_at_the_first(project: Path, runner: Callable[..., Ended]) -> None:
    options = [FP16, "precision.init_scale=1024", "+data.all_items=true", f"run.dir={project / 'run'}"]
    ended = runner(*TRAIN, *options, code=6)
    assert "step 1 is not finite. On rank 0, micro-batch" in ended.stderr
    (event,) = json.loads((project / "run" / "guard.json").read_text())
    assert (event["step"], event["found"][0]["module"]) == (1, "middle (Divide)")


def test_a_gradient_alone_is_left_to_the_scale(runner: Callable[..., Ended]) -> None:
    ended = runner(*TRAIN, FP16, "precision.init_scale=1024", "+model.middle=root")
    assert not ended.run_dir.guard.exists()
    assert ended.metrics()[-1]["train/skipped_steps"] == 2  # once an epoch of five steps, two begun
    assert finite(tensors(ended, 10))


def test_a_step_left_out_by_choice_does_not_lower_the_scale(runner: Callable[..., Ended]) -> None:
    ended = runner(*TRAIN, *PAIR, FP16, "precision.init_scale=1024", "guard.non_finite=skip", "run.steps=9")
    last = ended.metrics()[-1]
    assert (last["guard/skipped_steps"], last["train/skipped_steps"], last["train/loss_scale"]) == (2, 0, 1024)
    assert [event["found"][0]["module"] for event in guarded(ended)] == ["middle (Divide)"] * 2
