"""torchao's 8-bit and 4-bit optimizers: checkpoints have exactly what they keep, and rates follow a schedule."""

import copy
import importlib.util
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from runner.checkpoint.sharded import Sharded
from runner.errors import CheckpointError
from runner.optimizer.adamw import AdamW
from runner.optimizer.foreign import ForeignOptimizer
from runner.protocols import MicroBatch, Progress, StepBatches, Strategy, World
from runner.strategy.fsdp import FSDP
from runner.strategy.single import Single
from runner.world.solo import SoloWorld
from tests.conftest import Ended
from tests.storage.states import open_latest
from tests.strategy.ranks import builder, on_ranks

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("torchao") is None, reason="needs torchao"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:torch"),
]
SOLO = SoloWorld(torch.device("cpu"))
MODEL = nn.Sequential(nn.Linear(64, 128), nn.Tanh(), nn.Linear(128, 3))
"""A weight of 8,192 elements, which is quantized; those below 4,096 are not."""
torch.manual_seed(0)
X = torch.randn(6, 8, 64)


def prepare(name: str, strategy: Strategy, world: World = SOLO) -> Any:
    kind = ForeignOptimizer(target=f"torchao.optim.{name}", arguments={"lr": 0.01}) if name else AdamW(lr=0.01)
    made = builder(
        build=lambda: copy.deepcopy(MODEL),
        optimizer=partial(kind.build, items=8),
        loss=lambda model, batch: model(batch).square().mean(),
    )
    return strategy.prepare(made, world)


def take(trainable: Any, steps: range) -> None:
    with torch.compiler.set_stance("force_eager"):  # torchao compiles its update, which takes ten seconds
        for step in steps:
            trainable.forward_backward(StepBatches([MicroBatch(X[step], 8)], 8))
            trainable.update(measure=False)


def save(trainable: Any, path: Path, world: World = SOLO) -> None:
    path.mkdir(exist_ok=True)
    checkpointer = Sharded().open(path, world)
    checkpointer.save(trainable.state_dict(), progress=Progress(step=3, position=24), metrics={})
    checkpointer.wait()


def load(trainable: Any, path: Path, world: World = SOLO) -> None:
    with torch.compiler.set_stance("force_eager"):
        trainable.load_state_dict(open_latest(path, world))


@pytest.mark.parametrize("name", ["AdamW8bit", "Adam4bit", "AdamWFp8"])
def test_a_resumed_run_repeats_the_uninterrupted_one_to_the_bit(name: str, tmp_path: Path) -> None:
    whole, begun, resumed = (prepare(name, Single()) for _ in range(3))
    take(whole, range(6))
    take(begun, range(3))
    save(begun, tmp_path / "saved")
    load(resumed, tmp_path / "saved")
    take(resumed, range(3, 6))
    for mine, theirs in zip(resumed.models["model"].parameters(), whole.models["model"].parameters(), strict=True):
        assert torch.equal(mine, theirs)
    mine, theirs = (one.state_dict().optimizers["model"] for one in (resumed, whole))
    codes = {"AdamW8bit": 8192, "Adam4bit": 4096, "AdamWFp8": 8192}[name]  # bytes
    assert theirs["0.weight"]["exp_avg.codes"].nbytes == codes
    assert mine.keys() == theirs.keys()
    for parameter, slots in theirs.items():
        assert mine[parameter].keys() == slots.keys()
        for key, tensor in slots.items():
            ours = mine[parameter][key]
            assert torch.equal(ours.reshape(-1).view(torch.uint8), tensor.reshape(-1).view(torch.uint8)), key


def test_another_optimizer_is_told(tmp_path: Path) -> None:
    trainable = prepare("AdamW8bit", Single())
    take(trainable, range(1))
    save(trainable, tmp_path / "saved")
    with pytest.raises(CheckpointError, match=r"optimizer\.0\.weight\.exp_avg is quantized .* AdamW keeps none such"):
        load(prepare("", Single()), tmp_path / "saved")


def sharded(world: World) -> str:
    trainable = prepare("AdamW8bit", FSDP(), world)
    take(trainable, range(1))
    with pytest.raises(CheckpointError) as caught:
        trainable.state_dict()
    return str(caught.value)


def test_parts_of_parameters_are_told(tmp_path: Path) -> None:
    for found in on_ranks(2, sharded, scratch=tmp_path / "ranks", axes=FSDP().axes(2)):
        assert "is a OptimState8bit of this rank's part" in found
        assert "strategy=single or ddp" in found


@pytest.mark.exhaustive
def test_a_recipe_names_it(runner: Callable[..., Ended]) -> None:
    words = ["optimizer={_target_:torchao.optim.AdamW8bit,lr:0.01}", "+model.width=2048", "schedule=cosine"]
    whole = runner("train", "points", *words, timeout_s=170).metrics()
    begun = runner("train", "points", *words, "run.stop_at_step=4", timeout_s=170)
    resumed = runner("resume", str(begun.run_dir.path), "run.stop_at_step=null", timeout_s=170)
    assert resumed.metrics() == whole
