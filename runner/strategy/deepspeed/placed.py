"""A model inside a DeepSpeed engine, without an optimizer."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any, final

import torch
from torch import Tensor
from torch.nn import Module

from runner.protocols import Loss, MicroBatch, MicroBatchLoss, SavedState, State, World
from runner.protocols.state import MODEL
from runner.strategy.common.forward_loss import outputs_in_evaluation
from runner.strategy.common.named_state import check_same_model, distinct_tensors
from runner.strategy.common.placed_module import evaluation_losses
from runner.strategy.deepspeed.partitions import untrained_tensor


@final
class CastLossModule(Module):
    """The module that DeepSpeed wraps: computes the loss hook on the user's model, in the dtypes of the precision.

    It enters autocast itself, since an engine exits any autocast that surrounds it.
    """

    def __init__(
        self,
        model: Module,
        loss: Callable[[Module, Any, int], Loss | Tensor],
        *,
        autocast: AbstractContextManager[Any],
        input_dtype: torch.dtype | None,
    ) -> None:
        """Wrap a model.

        Args:
            input_dtype: cast floating-point inputs of the model to this; None = leave them.
        """
        super().__init__()
        self.model = model
        self._loss = loss
        self._autocast = autocast
        if input_dtype is not None:
            model.register_forward_pre_hook(
                lambda _, args, kwargs: _cast((args, kwargs), input_dtype), with_kwargs=True
            )

    def forward(self, batch: Any, items: int) -> Loss | Tensor:
        """The loss hook on one micro-batch, and how many of its items count."""
        with self._autocast:
            return outputs_in_evaluation(self._loss(self.model, batch, items))


@final
class PlacedZero:
    """A model whose parameters DeepSpeed may partition, and then gathers for use."""

    def __init__(self, engine: Any, loss_module: CastLossModule, *, sync_buffers: bool, world: World) -> None:
        """Hold a model that is inside an engine.

        Args:
            engine: DeepSpeed's engine.
            loss_module: the module that the engine wraps.
            sync_buffers: give every rank the buffers of rank 0 before each step.
            world: all ranks of the run.
        """
        self.loss_module = loss_module
        self._engine = engine
        self._world = world
        self._buffers = list(loss_module.model.buffers()) if sync_buffers and world.size > 1 else []

    @property
    def models(self) -> Mapping[str, Module]:
        """The user's model, unwrapped."""
        return {MODEL: self.loss_module.model}

    def sync_buffers(self) -> None:
        """Broadcast the buffers of rank 0, if the strategy asks for it. Collective."""
        for buffer in self._buffers:
            self._world.broadcast(buffer)

    def evaluate(self, micro_batches: Iterable[MicroBatch]) -> Iterator[MicroBatchLoss]:
        """Call the loss hook on the model; stage 3 gathers weights as in training."""
        return evaluation_losses(self._engine, self.loss_module, micro_batches)

    def state_dict(self) -> State[Tensor]:
        """This rank's partition of each parameter."""
        tensors = distinct_tensors(self.loss_module.model)
        return State(models={MODEL: {name: untrained_tensor(value, rank=self._world.rank) for name, value in tensors}})

    def load_state_dict(self, saved: SavedState) -> None:
        """Load this rank's own partitions."""
        state = self.state_dict()
        check_same_model(state, saved)
        saved.read(state)


def _cast(value: Any, dtype: torch.dtype) -> Any:
    if isinstance(value, Tensor):
        return value.to(dtype) if value.is_floating_point() else value
    if isinstance(value, dict):
        return {key: _cast(item, dtype) for key, item in value.items()}
    if isinstance(value, tuple | list):
        items = [_cast(item, dtype) for item in value]
        return type(value)(*items) if isinstance(value, tuple) and type(value) is not tuple else type(value)(items)
    return value
