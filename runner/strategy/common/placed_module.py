"""A torch module on this rank's device together with its loss hook: can be evaluated, and training builds on it."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any, final

import torch
from torch import Tensor
from torch.nn import Module

from runner.protocols import Builder, Loss, MicroBatch, MicroBatchLoss, SavedState, State, World
from runner.protocols.state import MODEL
from runner.strategy.common.forward_loss import forward_loss
from runner.strategy.common.named_state import (
    NOTHING_ELSEWHERE,
    AsStored,
    check_same_model,
    model_tensors,
    unchanged,
)

Forward = Callable[[Any, int], Loss | Tensor]
"""Calls the loss hook on a batch, of which so many items count."""


@final
class PlacedModule:
    """A model whose parameters are on the device, as plain tensors or DTensors."""

    def __init__(
        self,
        model: Module,
        builder: Builder,
        device: torch.device,
        *,
        forward: Forward | None = None,
        as_stored: AsStored = unchanged,
        elsewhere: Mapping[str, tuple[int, ...]] = NOTHING_ELSEWHERE,
    ) -> None:
        """Hold a model that is already on its device.

        Args:
            model: the user's own module.
            builder: provides the loss hook and the precision.
            device: the device that the model computes on.
            forward: calls the loss hook; None = directly on the model.
            as_stored: what stands for a tensor of a parameter in checkpoints.
            elsewhere: the shapes of the model's tensors that only other ranks have, by name.
        """
        self.model = model
        self.as_stored = as_stored
        self.elsewhere = elsewhere
        self._precision = builder.precision
        self._device = device
        self.forward = self.in_autocast(partial(builder.loss, model) if forward is None else forward)

    @property
    def models(self) -> Mapping[str, Module]:
        """The model, under its name."""
        return {MODEL: self.model}

    def in_autocast(self, forward: Forward) -> Forward:
        """The forward inside the precision's autocast; unchanged if the precision has none."""
        context = self._precision.autocast(self._device.type)
        return forward if isinstance(context, nullcontext) else _inside(context, forward)

    def evaluate(self, micro_batches: Iterable[MicroBatch]) -> Iterator[MicroBatchLoss]:
        """Call the loss hook in evaluation mode, without gradients."""
        return evaluation_losses(self.model, self.forward, micro_batches)

    def state_dict(self) -> State[Tensor]:
        """The model's parameters and persistent buffers."""
        return State(models={MODEL: model_tensors(self.model, self.as_stored)})

    def load_state_dict(self, saved: SavedState) -> None:
        """Load parameters and buffers in place."""
        state = self.state_dict()
        check_same_model(state, saved, elsewhere=self.elsewhere)
        saved.read(state)


def place_whole(builder: Builder, world: World) -> PlacedModule:
    """The whole model on this rank's device, recomputed and compiled."""
    return PlacedModule(builder.build_whole_model().to(world.device), builder, world.device)


def evaluation_losses(model: Module, forward: Forward, micro_batches: Iterable[MicroBatch]) -> Iterator[MicroBatchLoss]:
    """The loss of each micro-batch, with the model in evaluation mode and without gradients."""
    with evaluation_mode(model):
        for micro_batch in micro_batches:
            with torch.no_grad():
                loss = forward_loss(forward, micro_batch, takes_outputs=True)
            yield loss


@contextmanager
def evaluation_mode(model: Module) -> Iterator[None]:
    """Switch to evaluation mode inside the block; afterwards each module returns to its previous mode."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _inside(context: AbstractContextManager[Any], forward: Forward) -> Forward:
    """The forward inside a context that is entered on each call."""

    def inside(batch: Any, items: int) -> Loss | Tensor:
        with context:
            return forward(batch, items)

    return inside
