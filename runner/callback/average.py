"""The averaged weights of a run, which `callback=ema` keeps."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, final

import torch
from torch import Tensor

from runner.errors import ModelError
from runner.model.local_part import Sharded, local_part
from runner.protocols import Run, Trainable
from runner.protocols.state import of_model

NARROW = (torch.float16, torch.bfloat16)


@final
class Average:
    """The average of one run, sharded as the weights are: each rank averages what it holds.

    Args:
        decay_of: from the number of an update, counted from 1, to the average's weight in it.
        every_steps: optimizer steps between updates.
        in_evaluations: whether evaluations use the averaged weights.
    """

    def __init__(self, *, decay_of: Callable[[int], float], every_steps: int, in_evaluations: bool) -> None:
        self._decay_of = decay_of
        self._every_steps = every_steps
        self._in_evaluations = in_evaluations
        self._updates = 0
        self._average: dict[str, Tensor] = {}
        self._parts: list[Tensor] = []  # this rank's, of the average
        self._weights: list[Tensor] = []  # the live, trained ones
        self._has_narrow = False  # whether the average is wider than the weights

    def after_step(self, run: Run) -> None:
        """Update the average, at every `every_steps`-th step."""
        if self._every_steps > 1 and run.progress.step % self._every_steps:
            return
        self._place(run.trainable)
        self._updates += 1
        weights = self._weights
        if self._has_narrow:
            weights = [w.to(a.dtype) for w, a in zip(weights, self._parts, strict=True)]
        torch._foreach_lerp_(self._parts, weights, 1 - self._decay_of(self._updates))

    @contextmanager
    def around_eval(self, run: Run) -> Iterator[None]:
        """The model has the averaged weights in the block; afterwards its own are restored bit for bit."""
        if not self._in_evaluations or not self._updates:
            yield
            return
        kept = [weight.clone() for weight in self._weights]
        torch._foreach_copy_(self._weights, self._parts)
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
        self._parts = _local(self._average.values())
        self._has_narrow = any(weight.dtype in NARROW for weight in self._weights)


def _local(tensors: Iterable[Tensor]) -> list[Tensor]:
    """This rank's part of each, sharing its memory."""
    return [local_part(tensor) for tensor in tensors]
