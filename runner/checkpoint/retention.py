"""Which committed checkpoints stay."""

import math
from collections.abc import Iterator, Mapping
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING

from runner.errors import CheckpointError, Fault
from runner.storage.format import Manifest

if TYPE_CHECKING:
    from runner.config.run_spec import RunSpec


class Mode(Enum):
    """Which way a metric gets better."""

    min = "min"
    max = "max"


def check_best(keep_best: int, metric: str, spec: "RunSpec") -> Iterator[Fault]:
    """The best can only be known where something is evaluated."""
    if keep_best and spec.eval.every_steps is None and not spec.eval.at_end:
        rule = f"keep_best={keep_best} needs {metric}, but this run never evaluates. Set eval.every_steps."
        yield Fault(key="checkpoint.keep_best", message=rule)


def superfluous(
    found: Mapping[Path, Manifest | CheckpointError], keep_last: int, *, keep_best: int, metric: str, mode: Mode
) -> list[Path]:
    """The checkpoints that are neither among the newest nor among the best.

    Args:
        found: newest first. One whose manifest cannot be read stays: nobody knows what it is.
        keep_last: how many of the newest stay.
        keep_best: how many of the best stay besides; one without the metric, or at NaN, is not among them.
    """
    readable = {path: one for path, one in found.items() if isinstance(one, Manifest)}
    sign = 1.0 if mode is Mode.min else -1.0
    ranked = {path: sign * one.metrics.get(metric, math.nan) for path, one in readable.items()}
    best = sorted((path for path, value in ranked.items() if not math.isnan(value)), key=lambda path: ranked[path])
    kept = {*list(readable)[:keep_last], *best[:keep_best]}
    return [path for path in readable if path not in kept]
