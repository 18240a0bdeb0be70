"""Which committed checkpoints are kept."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, final

from runner.errors import CheckpointError, Fault
from runner.storage.format import Manifest

if TYPE_CHECKING:
    from runner.config.run_spec import RunSpec


class Mode(Enum):
    """Which values of a metric are better."""

    min = "min"
    max = "max"


@final
@dataclass(frozen=True, kw_only=True)
class Retention:
    """The keys of every checkpoint option that keeps some checkpoints and deletes the others."""

    keep_last: int | None = 3
    """How many of the newest checkpoints are kept; null = all."""
    keep_best: int = 0
    """How many of the best by `metric` are kept in addition; 0 = off."""
    metric: str = "eval/loss"
    """The metric that keep_best compares, by its name in metrics.jsonl."""
    mode: Mode = Mode.min
    """Whether lower or higher values of `metric` are better."""

    def __post_init__(self) -> None:
        if self.keep_last is not None and self.keep_last < 1:
            raise ValueError(f"keep_last={self.keep_last} must be at least 1, or null to keep all.")
        if self.keep_best < 0:
            raise ValueError(f"keep_best={self.keep_best} must be at least 0.")

    def check(self, spec: "RunSpec") -> Iterator[Fault]:
        """Check that the run evaluates if the best checkpoints are to be kept."""
        if self.keep_best and not spec.eval.cadences and not spec.eval.at_end:
            rule = f"keep_best={self.keep_best} needs {self.metric}, but this run never evaluates."
            yield Fault(key="checkpoint.keep_best", message=f"{rule} Set eval.every_steps.")

    def superfluous(self, found: Mapping[Path, Manifest | CheckpointError]) -> list[Path]:
        """The checkpoints that are neither among the newest nor among the best.

        A checkpoint without the metric, or with NaN, is not among the best. One whose manifest cannot be read is kept,
        since its step and metrics are unknown.

        Args:
            found: all checkpoints, newest first.
        """
        readable = {path: one for path, one in found.items() if isinstance(one, Manifest)}
        sign = 1.0 if self.mode is Mode.min else -1.0
        ranked = {path: sign * one.metrics.get(self.metric, math.nan) for path, one in readable.items()}
        best = sorted((path for path, value in ranked.items() if not math.isnan(value)), key=lambda path: ranked[path])
        keep_last = len(found) if self.keep_last is None else self.keep_last
        kept = {*list(readable)[:keep_last], *best[: self.keep_best]}
        return [path for path in readable if path not in kept]
