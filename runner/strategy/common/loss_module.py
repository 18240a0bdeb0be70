"""The loss hook and the model as one module, which a strategy can wrap while hooks still get the user's own model."""

from collections.abc import Callable
from typing import Any, final

from torch import Tensor
from torch.nn import Module

from runner.protocols import Loss
from runner.strategy.common.forward_loss import outputs_in_evaluation


@final
class LossModule(Module):
    """A module whose forward calls the loss hook, so that the model runs inside this forward."""

    def __init__(self, model: Module, loss: Callable[[Module, Any, int], Loss | Tensor]) -> None:
        super().__init__()
        self.model = model
        self._loss = loss

    def forward(self, batch: Any, items: int) -> Loss | Tensor:
        """The loss hook on one micro-batch, and how many of its items count."""
        return outputs_in_evaluation(self._loss(self.model, batch, items))
