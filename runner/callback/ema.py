"""An exponential moving average of the weights: Polyak, Juditsky (1992), as deep learning uses it."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, final, runtime_checkable

import torch
from torch import Tensor

from runner.errors import Fault, ModelError
from runner.protocols import Progress, Trainable

if TYPE_CHECKING:
    from runner.config.run_spec import RunSpec

MODEL = "model."  # before the names of weights in every State: see runner.protocols.State
NARROW = (torch.float16, torch.bfloat16)


class Start(Enum):
    """How much the first weights count, from which training soon moves away."""

    WARMUP = "warmup"
    """The decay of update n is at most (1 + n) / (10 + n), as in TensorFlow's ExponentialMovingAverage."""
    DEBIAS = "debias"
    """All updates are weighed as if there had been nothing before: Adam's bias correction, folded into the decay."""
    COPY = "copy"
    """The average begins as a copy and keeps its decay."""


class Weights(Enum):
    """Which weights an evaluation sees."""

    EMA = "ema"
    """The average."""
    MODEL = "model"
    """Those that are trained."""


@runtime_checkable
class Sharded(Protocol):
    """A DTensor, whose module takes a second to import."""

    def to_local(self) -> Tensor:
        """This rank's part."""
        ...


@final
@dataclass(frozen=True, kw_only=True)
class EMA:
    """average = decay × average + (1 − decay) × weights, for parameters and floating buffers, in float32 at least."""

    every_step: ClassVar[bool] = True

    decay: float = 0.999
    """Of the average, at each update."""
    every_steps: int = 1
    """Optimizer steps between updates."""
    start: Start = Start.WARMUP
    """How the first updates are weighed."""
    evaluate_with: Weights = Weights.EMA
    """Whose weights an evaluation sees."""

    def __post_init__(self) -> None:
        if not 0 <= self.decay < 1:
            raise ValueError(f"decay={self.decay} must lie in [0, 1), for example 0.999.")
        if self.every_steps < 1:
            raise ValueError(f"every_steps={self.every_steps} must be at least 1.")

    def check(self, spec: "RunSpec") -> Iterable[Fault]:
        """Goes with everything but strategies that keep weights in pieces: the run says so before its first step."""
        return ()

    def build(self) -> "Average":
        """Nothing averaged yet."""
        return Average(self)

    def decay_of(self, update: int) -> float:
        """Of the n-th update, from 1 on. The first copies, whatever was there."""
        if update == 1:
            return 0.0
        if self.start is Start.WARMUP:
            return min(self.decay, (1 + update) / (10 + update))
        if self.start is Start.DEBIAS:
            return self.decay * (1 - self.decay ** (update - 1)) / (1 - self.decay**update)
        return self.decay


@final
class Average:
    """The average of one run, placed as the weights are: each rank averages what it holds."""

    def __init__(self, part: EMA) -> None:
        self._part = part
        self._updates = 0
        self._average: dict[str, Tensor] = {}
        self._weights: list[Tensor] = []  # the trained ones, live

    def after_step(self, trainable: Trainable, progress: Progress) -> None:
        """Move the average, if it is time to."""
        if progress.step % self._part.every_steps:
            return
        self._place(trainable)
        self._updates += 1
        averages = _local(self._average.values())
        weights = [w.to(a.dtype) for w, a in zip(self._weights, averages, strict=True)]
        torch._foreach_lerp_(averages, weights, 1 - self._part.decay_of(self._updates))

    def after_eval(self, metrics: Mapping[str, float], progress: Progress) -> str | None:
        """Never ends a run."""
        return None

    @contextmanager
    def evaluating(self, trainable: Trainable) -> Iterator[None]:
        """The model has the averaged weights in the block, and afterwards its own again, to the bit."""
        if self._part.evaluate_with is Weights.MODEL or not self._updates:
            yield
            return
        kept = [weight.clone() for weight in self._weights]
        torch._foreach_copy_(self._weights, _local(self._average.values()))
        try:
            yield
        finally:
            torch._foreach_copy_(self._weights, kept)

    def state(self) -> dict[str, Any]:
        """How many updates were made."""
        return {"updates": self._updates}

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from there."""
        self._updates = state["updates"]

    def tensors(self, trainable: Trainable) -> dict[str, Tensor]:
        """The average, by the names of the weights."""
        self._place(trainable)
        return dict(self._average)

    def _place(self, trainable: Trainable) -> None:
        """Make room beside the weights, once.

        Raises:
            ModelError: they do not lie in tensors that can be computed with.
        """
        if self._average:
            return
        state = trainable.state().tensors
        weights = {
            name.removeprefix(MODEL): tensor
            for name, tensor in state.items()
            if name.startswith(MODEL) and tensor.is_floating_point()
        }
        for name, weight in weights.items():
            if type(weight) is not Tensor and not isinstance(weight, Sharded):
                raise ModelError(
                    f"callback=ema averages weights, but this strategy keeps {name} in pieces that only a checkpoint "
                    "can read. Use strategy=fsdp, which cuts as much, or drop the callback."
                )
        self._weights = _local(weights.values())
        self._average = {
            name: torch.zeros_like(weight, dtype=torch.float32 if weight.dtype in NARROW else weight.dtype)
            for name, weight in weights.items()
        }


def _local(tensors: Iterable[Tensor]) -> list[Tensor]:
    """This rank's part of each, in the same memory."""
    with torch.no_grad():
        return [tensor.to_local() if isinstance(tensor, Sharded) else tensor for tensor in tensors]
