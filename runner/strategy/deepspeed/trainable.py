"""The step under a DeepSpeed engine: ZeRO, Rajbhandari et al. (SC 2020)."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, final

import torch
from torch import Tensor
from torch.nn import Module

from runner.errors import NonFiniteError
from runner.protocols import (
    Loss,
    MicroBatch,
    MicroBatchLoss,
    Scaler,
    State,
    StepBatches,
    StepLoss,
    StoredTensor,
    Update,
    World,
)
from runner.strategy.common.count_estimate import CountEstimate, EstimatedCount, NoEstimate
from runner.strategy.common.forward_loss import at_least_one, check_has_gradient, forward_loss
from runner.strategy.common.stateful import state_dicts, with_stateful
from runner.strategy.deepspeed.gradients import Gradients
from runner.strategy.deepspeed.state import NamedPartitions


@final
class CastLossModule(Module):
    """What DeepSpeed wraps: the hook's loss of the user's own model, in the types of the precision.

    Autocast is entered here, since an engine leaves one that it finds around itself.
    """

    def __init__(
        self,
        model: Module,
        loss: Callable[[Module, Any], Loss | Tensor],
        *,
        autocast: AbstractContextManager[Any],
        input_dtype: torch.dtype | None,
    ) -> None:
        """Wrap a model.

        Args:
            input_dtype: of floating tensors that the hook gives to the model; None = as they are.
        """
        super().__init__()
        self.model = model
        self._loss = loss
        self._autocast = autocast
        if input_dtype is not None:
            model.register_forward_pre_hook(
                lambda _, args, kwargs: _cast((args, kwargs), input_dtype), with_kwargs=True
            )

    def forward(self, batch: Any) -> Loss | Tensor:
        """The hook's loss of one micro-batch."""
        with self._autocast:
            return self._loss(self.model, batch)


@final
class ZeroTrainable:
    """A model and its optimizer inside a DeepSpeed engine."""

    def __init__(
        self,
        engine: Any,
        *,
        loss_module: CastLossModule,
        state: NamedPartitions,
        gradients: Gradients,
        scaler: Scaler,
        sync_buffers: Sequence[Tensor],
        world: World,
    ) -> None:
        """Set up for a fresh run.

        Args:
            sync_buffers: rank 0's are given to all before each step.
        """
        self.model = loss_module.model
        self._engine = engine
        self._loss_of = loss_module
        self._state = state
        self._gradients = gradients
        self._scaler = scaler
        self._count_estimate: CountEstimate = EstimatedCount(world) if scaler.scales else NoEstimate()
        self._kept = {"scaler": scaler, "expected": self._count_estimate}
        self._buffers = sync_buffers
        self._world = world
        self._factor: Tensor | float = 1.0
        engine.train()

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """What DeepSpeed steps for each of its flat partitions."""
        optimizer: torch.optim.Optimizer = self._engine.optimizer.optimizer
        return optimizer

    def forward_backward(self, batches: StepBatches) -> StepLoss:
        """Forward and backward every round; stage 1 exchanges gradients in the last, stages 2 and 3 in each."""
        self._gradients.begin()
        for buffer in self._buffers:
            torch.distributed.broadcast(buffer, 0)
        losses: list[MicroBatchLoss] = []
        finish: Callable[[], Tensor | int] = lambda: batches.items  # noqa: E731
        for index, micro_batch in enumerate(batches.micro_batches):
            is_last = index == len(batches.micro_batches) - 1
            self._engine.set_gradient_accumulation_boundary(is_last)
            losses.append(loss := forward_loss(self._engine, micro_batch))
            check_has_gradient(loss.value)
            if is_last and not loss.is_mean:
                counts = [loss.count for loss in losses]
                finish = self._world.start_sum(torch.as_tensor(sum(counts), device=loss.value.device))
            # The engine averages over ranks. A mean is divided before backward, for every rank knows the step's items.
            weight, items = loss.weight, batches.items
            factor = (
                weight * self._world.size / items if loss.is_mean else weight / self._count_estimate.of(loss, batches)
            )
            # A product even by 1: given the very tensor that came from forward, the engine divides by its rounds.
            self._engine.backward(loss.value * (factor * self._scaler.scale), scale_wrt_gas=False)
        count = finish()
        last = losses[-1]
        if last.is_mean:
            self._factor = 1.0
        else:
            self._factor = self._world.size * self._count_estimate.of(last, batches) / at_least_one(count)
        return StepLoss(losses, count)

    def update(self, *, measure: bool) -> Update:
        """Divide, clip, step, clear, give the new weights to all: DeepSpeed's own step.

        Raises:
            NonFiniteError: the gradient is not finite and no loss scale is to blame: DeepSpeed skips the step.
        """
        norm = self._gradients.finish(self._factor / self._scaler.scale)
        self._engine.step()
        applied = self._engine.was_step_applied()
        # DeepSpeed has looked for what is not finite, on all ranks, and undone the scale.
        self._scaler.unscale((), 1.0, lambda _: torch.tensor(not applied))
        if not applied and self._scaler.scales:
            self._gradients.forget()
            return Update(False, None, self._scaler.record())
        if not applied:
            raise NonFiniteError(
                "the gradient of this step is not finite, and DeepSpeed takes no such step. Look for a division by "
                "zero or a logarithm of zero in the loss, lower optimizer.lr, or set clip.norm."
            )
        measured = self._engine.get_global_grad_norm() if norm is None else norm
        return Update(True, torch.as_tensor(measured, dtype=torch.float32), self._scaler.record())

    def evaluate(self, micro_batches: Iterable[MicroBatch]) -> Iterator[MicroBatchLoss]:
        """The hook on the model itself; stage 3 gathers weights as in training."""
        modes = [(module, module.training) for module in self._engine.modules()]
        self._engine.eval()
        try:
            for micro_batch in micro_batches:
                with torch.no_grad():
                    loss = forward_loss(self._loss_of, micro_batch)
                yield loss
        finally:
            for module, training in modes:
                module.training = training

    def state(self) -> State:
        """Model and optimizer by the model's own names, this rank's part of them."""
        state = self._state.state()
        state.values |= state_dicts(self._kept)
        return state

    def load_state(self, read: Callable[[State], None], stored: Mapping[str, StoredTensor]) -> None:
        """Continue from a checkpoint; every rank reads what it owns."""
        self._state.load(with_stateful(read, self._kept), stored)


def _cast(value: Any, dtype: torch.dtype) -> Any:
    if isinstance(value, Tensor):
        return value.to(dtype) if value.is_floating_point() else value
    if isinstance(value, dict):
        return {key: _cast(item, dtype) for key, item in value.items()}
    if isinstance(value, tuple | list):
        items = [_cast(item, dtype) for item in value]
        return type(value)(*items) if isinstance(value, tuple) and type(value) is not tuple else type(value)(items)
    return value
