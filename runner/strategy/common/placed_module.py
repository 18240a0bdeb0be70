"""A torch module on this rank's device, and the user's loss of it: what is evaluated, and what training stands on."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any, final

import torch
from torch import Tensor
from torch.nn import Module

from runner.protocols import Builder, Loss, MicroBatch, MicroBatchLoss, SavedState, State
from runner.protocols.state import MODEL
from runner.strategy.common.forward_loss import forward_loss
from runner.strategy.common.named_state import check_same_model, model_tensors

Forward = Callable[[Any], Loss | Tensor]
"""The loss hook on a batch."""


@final
class PlacedModule:
    """A model whose parameters are on the device, whole or as DTensors."""

    def __init__(
        self, model: Module, builder: Builder, device: torch.device, *, forward: Forward | None = None
    ) -> None:
        """Place a model that is already on its device.

        Args:
            model: the user's own module.
            builder: gives the loss hook and the precision.
            device: where the model computes.
            forward: the loss hook of the model, where it is not called directly.
        """
        self.model = model
        self._precision = builder.precision
        self._device = device
        self.forward = self.in_autocast(partial(builder.loss, model) if forward is None else forward)

    @property
    def models(self) -> Mapping[str, Module]:
        """The one model."""
        return {MODEL: self.model}

    def in_autocast(self, forward: Forward) -> Forward:
        """The forward inside the precision's autocast; the forward itself where that does nothing."""
        context = self._precision.autocast(self._device.type)
        return forward if isinstance(context, nullcontext) else _inside(context, forward)

    def evaluate(self, micro_batches: Iterable[MicroBatch]) -> Iterator[MicroBatchLoss]:
        """The hook on the model itself, without gradients."""
        with evaluation_mode(self.model):
            for micro_batch in micro_batches:
                with torch.no_grad():
                    loss = forward_loss(self.forward, micro_batch)
                yield loss

    def state_dict(self) -> State[Tensor]:
        """Parameters and persistent buffers."""
        return State(models={MODEL: model_tensors(self.model)})

    def load_state_dict(self, saved: SavedState) -> None:
        """Fill them in place."""
        state = self.state_dict()
        check_same_model(state.models[MODEL], saved.stored.models.get(MODEL, {}))
        saved.read(state)


@contextmanager
def evaluation_mode(model: Module) -> Iterator[None]:
    """Evaluation mode inside the block; afterwards each module is in the mode that it was in."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _inside(context: AbstractContextManager[Any], forward: Forward) -> Forward:
    """The forward in this context, entered anew each time."""

    def inside(batch: Any) -> Loss | Tensor:
        with context:
            return forward(batch)

    return inside
