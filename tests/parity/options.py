"""What tests over every option of a group share: the options that there are, and whole tensors of a checkpoint."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from runner.storage.checkpoints import Checkpoints
from runner.storage.names import from_names, to_names
from runner.world.solo import SoloWorld

CONF = Path(__file__).parents[2] / "conf"
STRATEGIES = sorted(path.stem for path in (CONF / "strategy").glob("*.yaml"))
INDEPENDENT = ("diloco", "local_sgd")  # their replicas take steps of their own, after a warm-up in which they do not
TOWER = ["train", "points", "model._target_=user_hooks.tower.build_model", "~model.dropout"]


def placed(strategy: str, ranks: int) -> list[str]:
    """The overrides that put a run on so many ranks; the strategy of one process stays there.

    Strategies with steps of their own stay in their warm-up, which promises what all others do.
    """
    if strategy.startswith("deepspeed") and find_spec("deepspeed") is None:
        pytest.skip("needs the extra deepspeed")
    if strategy == "single":
        return ["strategy=single", "hardware.processes=1"]
    crowded = ["hardware=cpu", "hardware.oversubscribe=true"] if ranks > 2 else []
    # 4 ranks in groups of two: replicas of shards, where a strategy has such a thing
    in_groups = ranks > 2 and (strategy.startswith("hsdp") or strategy in INDEPENDENT)
    groups = ["strategy.shard_size=2"] if in_groups else []
    warm_up = ["strategy.warmup_steps=1000"] if strategy in INDEPENDENT else []
    return [f"strategy={strategy}", f"hardware.processes={ranks}", *crowded, *groups, *warm_up]


def tensors(ended: Any, step: int, prefix: str = "model.") -> dict[str, torch.Tensor]:
    """Tensors of the checkpoint of a step, by name, whole however many ranks wrote them."""
    path = ended.run_dir.checkpoints / f"step_{step}"
    saved = Checkpoints(path.parent, SoloWorld(torch.device("cpu"))).open(path)
    stored = {name: found for name, found in to_names(saved.stored).items() if name.startswith(prefix)}
    read: dict[str, torch.Tensor] = {
        name: torch.empty(found.shape, dtype=found.dtype) for name, found in stored.items()
    }
    saved.read(from_names(read))
    return read
