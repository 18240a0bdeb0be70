"""An exponential moving average of the weights: Polyak, Juditsky (1992), as deep learning uses it."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, final

from runner.errors import Fault

if TYPE_CHECKING:
    from runner.callback.average import Average
    from runner.config.run_spec import RunSpec


class Start(Enum):
    """How much the initial weights count in the average."""

    WARMUP = "warmup"
    """The decay of update n is at most (1 + n) / (10 + n), as in TensorFlow's ExponentialMovingAverage."""
    DEBIAS = "debias"
    """Adam's bias correction, folded into the decay: the initial weights do not count."""
    COPY = "copy"
    """The average starts as a copy of the weights and always uses the full decay."""


class Weights(Enum):
    """Which weights an evaluation uses."""

    EMA = "ema"
    """The averaged ones."""
    MODEL = "model"
    """The trained ones."""


@final
@dataclass(frozen=True, kw_only=True)
class EMA:
    """average = decay × average + (1 − decay) × weights, for parameters and floating buffers, in float32 at least."""

    decay: float = 0.999
    """The average's weight in each update."""
    every_steps: int = 1
    """Optimizer steps between updates."""
    start: Start = Start.WARMUP
    """How much the initial weights count."""
    evaluate_with: Weights = Weights.EMA
    """Which weights an evaluation uses."""

    def __post_init__(self) -> None:
        if not 0 <= self.decay < 1:
            raise ValueError(f"decay={self.decay} must lie in [0, 1), for example 0.999.")
        if self.every_steps < 1:
            raise ValueError(f"every_steps={self.every_steps} must be at least 1.")

    def check(self, spec: "RunSpec") -> Iterable[Fault]:
        """No faults. Weights that cannot be averaged are found when the run starts, before its first step."""
        return ()

    def build(self) -> "Average":
        """An average without updates."""
        from runner.callback.average import Average

        in_evaluations = self.evaluate_with is Weights.EMA
        return Average(decay_of=self.decay_of, every_steps=self.every_steps, in_evaluations=in_evaluations)

    def decay_of(self, update: int) -> float:
        """The decay of the n-th update, counted from 1. The first one copies the weights."""
        if update == 1:
            return 0.0
        if self.start is Start.WARMUP:
            return min(self.decay, (1 + update) / (10 + update))
        if self.start is Start.DEBIAS:
            return self.decay * (1 - self.decay ** (update - 1)) / (1 - self.decay**update)
        return self.decay
