"""The user's loss of their model as one module: what a strategy wraps, so that hooks always meet their own model."""

from collections.abc import Callable
from typing import Any, final

from torch import Tensor
from torch.nn import Module

from runner.protocols import Loss


@final
class LossModule(Module):
    """Its forward is the hook; all that the hook calls of the model happens inside."""

    def __init__(self, model: Module, loss: Callable[[Module, Any], Loss | Tensor]) -> None:
        super().__init__()
        self.model = model
        self._loss = loss

    def forward(self, batch: Any) -> Loss | Tensor:
        """The hook's loss of one micro-batch."""
        return self._loss(self.model, batch)
