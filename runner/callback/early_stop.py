"""End a run once a metric of its evaluations has stopped improving."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, final

from runner.config.run_spec import RunSpec
from runner.errors import Fault, HookError
from runner.protocols import Run


class Mode(Enum):
    """Whether lower or higher values of a metric are better."""

    min = "min"
    max = "max"


@final
@dataclass(frozen=True, kw_only=True)
class EarlyStop:
    """Ends the run after `patience` evaluations in a row that did not improve on the best one."""

    metric: str = "eval/loss"
    """What an evaluation yields: eval/loss, or eval/ and a name that the loss hook gives."""
    mode: Mode = Mode.min
    """Whether lower or higher is better."""
    patience: int = 3
    """Evaluations in a row without improvement that end the run."""
    min_delta: float = 0.0
    """An improvement is larger than this, in the metric's unit."""

    def __post_init__(self) -> None:
        if self.patience < 1:
            raise ValueError(f"patience={self.patience} must be at least 1: evaluations without improvement")
        if not 0.0 <= self.min_delta < math.inf:
            raise ValueError(f"min_delta={self.min_delta} must be a finite number of at least 0; 0 = any improvement")

    def check(self, spec: RunSpec) -> Iterator[Fault]:
        """There must be evaluations during the run, and the metric must be one of theirs."""
        if not spec.eval.cadences:
            rule = "callback=early_stop looks at evaluations, and there are none during the run (null = off). "
            yield Fault(key="eval.every_steps", message=rule + "Set it, for example eval.every_steps=100")
        prefixes = ["eval", *(one.prefix for one in spec.eval.sets.values() if one.prefix)]
        if not any(self.metric.startswith(f"{prefix}/") for prefix in prefixes):
            rule = f"{self.metric!r} is not measured by an evaluation, whose metrics start with eval/. Use eval/loss, "
            yield Fault(key="callback.early_stop.metric", message=rule + "or eval/<name> as the loss hook names it")

    def build(self) -> "EarlyStopListener":
        """A listener that has seen no evaluation."""
        return EarlyStopListener(self)


@final
class EarlyStopListener:
    """Counts evaluations without improvement. Metrics are the same on all ranks, so all ranks count the same."""

    def __init__(self, part: EarlyStop) -> None:
        self._part = part
        self._best: float | None = None
        self._best_step = 0
        self._waited = 0

    def after_eval(self, run: Run, metrics: Mapping[str, float]) -> str | None:
        """Return why the run ends here, or None.

        Raises:
            HookError: the evaluation did not yield the metric.
        """
        part, step = self._part, run.progress.step
        if part.metric not in metrics:
            own = part.metric.rpartition("/")[0]
            if own in run.eval_prefixes and not any(name.startswith(f"{own}/") for name in metrics):
                return None  # this evaluation was of other sets
            there = ", ".join(sorted(metrics)) or "none"
            raise HookError(
                f"callback.early_stop.metric={part.metric}: the evaluation at step {step} did not yield it. "
                f"It yielded: {there}. Choose one of these, or return it among the metrics of Loss in the loss hook."
            )
        value = metrics[part.metric]
        if self._improves(value):
            self._best, self._best_step, self._waited = value, step, 0
            return None
        self._waited += 1
        return self._reason() if self._waited >= part.patience else None

    def state_dict(self) -> dict[str, Any]:
        """The best value, its step, and the number of evaluations since."""
        return {"best": self._best, "best_step": self._best_step, "waited": self._waited}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from there."""
        self._best = state_dict["best"]
        self._best_step = state_dict["best_step"]
        self._waited = state_dict["waited"]

    def _improves(self, value: float) -> bool:
        """Whether it beats the best by more than min_delta. NaN and infinity never do."""
        if not math.isfinite(value):
            return False
        if self._best is None:
            return True
        gain = self._best - value if self._part.mode is Mode.min else value - self._best
        return gain > self._part.min_delta

    def _reason(self) -> str:
        best = "it was never finite" if self._best is None else f"best {self._best:.6g} at step {self._best_step}"
        return f"{self._part.metric} did not improve in {self._waited} evaluations: {best}"
