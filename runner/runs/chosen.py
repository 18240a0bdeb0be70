"""Which of a run's committed checkpoints a command reads."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from runner.config.run_dir import RunDir
from runner.errors import CheckpointError, Fault, SpecError
from runner.storage.format import Manifest
from runner.storage.history import manifests

__all__ = ["best_checkpoint", "chosen_checkpoint"]


def chosen_checkpoint(run_dir: RunDir, step: int | None) -> Path:
    """The checkpoint of a step; None = the newest.

    Raises:
        SpecError: there is no such checkpoint.
    """
    committed = _committed(run_dir)
    names = [path.name for path in committed]
    wanted = names[0] if step is None else f"step_{step}"
    if wanted not in names:
        there = ", ".join(str(step) for step in sorted(int(name.removeprefix("step_")) for name in names))
        raise SpecError(Fault(key="--step", message=f"there is no checkpoint of step {step}. There are: {there}."))
    return run_dir.checkpoints / wanted


def best_checkpoint(run_dir: RunDir, config: Mapping[str, Any]) -> Path:
    """The checkpoint whose metrics have the best value of `checkpoint.metric`, by `checkpoint.mode`.

    Args:
        config: the declaration.

    Raises:
        SpecError: no checkpoint has that metric.
    """
    node = config.get("checkpoint") or {}
    metric, sign = str(node.get("metric", "eval/loss")), -1.0 if node.get("mode") == "max" else 1.0
    committed = _committed(run_dir)
    values = {path: sign * one.metrics.get(metric, math.nan) for path, one in committed.items() if _is_whole(one)}
    ranked = {path: value for path, value in values.items() if not math.isnan(value)}
    if not ranked:
        rule = f"no checkpoint of {run_dir.path} has the metric {metric}, by which checkpoint.metric says that they are"
        raise SpecError(Fault(key="--best", message=f"{rule} compared. Choose another one, or a checkpoint: --step N"))
    return min(ranked, key=lambda path: ranked[path])


def _is_whole(manifest: Manifest | CheckpointError) -> bool:
    return isinstance(manifest, Manifest)


def _committed(run_dir: RunDir) -> dict[Path, Any]:
    committed = manifests(run_dir.checkpoints)
    if not committed:
        rule = (
            f"{run_dir.path} has no committed checkpoint yet. A run commits by checkpoint.every_steps and at its end."
        )
        raise SpecError(Fault(key="DIR", message=rule))
    return committed
