"""An exponential moving average of the weights: Polyak, Juditsky (1992), as deep learning uses it."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, final

import torch
from torch import Tensor

from runner.errors import Fault, ModelError
from runner.model.local_part import Sharded, local_part
from runner.protocols import Run, Trainable
from runner.protocols.state import of_model

if TYPE_CHECKING:
    from runner.config.run_spec import RunSpec

MODEL = "model."  # prefix of the names of weights in a State: see runner.protocols.State
NARROW = (torch.float16, torch.bfloat16)


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
        return Average(self)

    def decay_of(self, update: int) -> float:
        """The decay of the n-th update, counted from 1. The first one copies the weights."""
        if update == 1:
            return 0.0
        if self.start is Start.WARMUP:
            return min(self.decay, (1 + update) / (10 + update))
        if self.start is Start.DEBIAS:
            return self.decay * (1 - self.decay ** (update - 1)) / (1 - self.decay**update)
        return self.decay


@final
class Average:
    """The average of one run, sharded as the weights are: each rank averages what it holds."""

    def __init__(self, part: EMA) -> None:
        self._part = part
        self._updates = 0
        self._average: dict[str, Tensor] = {}
        self._weights: list[Tensor] = []  # the live, trained ones

    def after_step(self, run: Run) -> None:
        """Update the average, at every `every_steps`-th step."""
        if run.progress.step % self._part.every_steps:
            return
        self._place(run.trainable)
        self._updates += 1
        averages = _local(self._average.values())
        weights = [w.to(a.dtype) for w, a in zip(self._weights, averages, strict=True)]
        torch._foreach_lerp_(averages, weights, 1 - self._part.decay_of(self._updates))

    @contextmanager
    def around_eval(self, run: Run) -> Iterator[None]:
        """The model has the averaged weights in the block; afterwards its own are restored bit for bit."""
        if self._part.evaluate_with is Weights.MODEL or not self._updates:
            yield
            return
        kept = [weight.clone() for weight in self._weights]
        torch._foreach_copy_(self._weights, _local(self._average.values()))
        try:
            yield
        finally:
            torch._foreach_copy_(self._weights, kept)

    def state_dict(self) -> dict[str, Any]:
        """The number of updates."""
        return {"updates": self._updates}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from that number of updates."""
        self._updates = state_dict["updates"]

    def tensors(self, trainable: Trainable) -> dict[str, Tensor]:
        """The average, by the names of the weights."""
        self._place(trainable)
        return dict(self._average)

    def _place(self, trainable: Trainable) -> None:
        """Allocate the average, once.

        Raises:
            ModelError: the strategy's weights are not tensors that can be computed with.
        """
        if self._average:
            return
        weights = {
            of_model(model, name): tensor
            for model, tensors in trainable.state_dict().models.items()
            for name, tensor in tensors.items()
            if tensor.is_floating_point()
        }
        for name, weight in weights.items():
            if type(weight) is not Tensor and not isinstance(weight, Sharded):
                raise ModelError(
                    f"callback=ema averages weights, but this strategy keeps {name} in pieces that only a checkpoint "
                    "can read. Use strategy=fsdp, which shards as much, or drop the callback."
                )
        self._weights = _local(weights.values())
        self._average = {
            name: torch.zeros_like(weight, dtype=torch.float32 if weight.dtype in NARROW else weight.dtype)
            for name, weight in weights.items()
        }


def _local(tensors: Iterable[Tensor]) -> list[Tensor]:
    """This rank's part of each, sharing its memory."""
    return [local_part(tensor) for tensor in tensors]
