"""A trainable around another one, such as the plain step of a module: what a subclass leaves, the inner one does."""

from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor
from torch.nn import Module

from runner.protocols import MicroBatch, MicroBatchLoss, SavedState, State, StepBatches, StepLoss, Trainable, Update


class Around:
    """Hands every call of a trainable on. A base class."""

    def __init__(self, inner: Trainable) -> None:
        """Stand around another trainable."""
        self._inner = inner

    @property
    def models(self) -> Mapping[str, Module]:
        """The inner one's models."""
        return self._inner.models

    @property
    def optimizers(self) -> Mapping[str, torch.optim.Optimizer]:
        """The inner one's optimizers."""
        return self._inner.optimizers

    @property
    def exchange_bytes(self) -> int:
        """What the inner one exchanges."""
        return self._inner.exchange_bytes

    def forward_backward(self, batches: StepBatches) -> StepLoss:
        """The inner one's forward and backward."""
        return self._inner.forward_backward(batches)

    def gradients_finite(self) -> Tensor:
        """Whether the gradients on this rank are finite."""
        return self._inner.gradients_finite()

    def update(self, *, measure: bool) -> Update:
        """The inner one's update."""
        return self._inner.update(measure=measure)

    def discard(self) -> None:
        """Drop the gradients."""
        self._inner.discard()

    def evaluate(self, micro_batches: Iterable[MicroBatch]) -> Iterator[MicroBatchLoss]:
        """The inner one's losses."""
        return self._inner.evaluate(micro_batches)

    def state_dict(self) -> State[Tensor]:
        """The inner one's state."""
        return self._inner.state_dict()

    def load_state_dict(self, saved: SavedState) -> None:
        """Continue from a checkpoint."""
        self._inner.load_state_dict(saved)
