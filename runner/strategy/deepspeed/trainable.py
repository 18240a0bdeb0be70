"""The training step of a DeepSpeed engine: ZeRO, Rajbhandari et al. (SC 2020)."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, final

import torch
from torch import Tensor
from torch.nn import Module

from runner.protocols import (
    MicroBatch,
    MicroBatchLoss,
    SavedState,
    Scaler,
    State,
    StepBatches,
    StepLoss,
    Update,
    World,
)
from runner.protocols.state import MODEL
from runner.strategy.common.count_estimate import CountEstimate, EstimatedCount, NoEstimate
from runner.strategy.common.forward_loss import at_least_one, check_has_gradient, forward_loss
from runner.strategy.common.stateful import load_state_dicts, state_dicts
from runner.strategy.deepspeed.gradients import Gradients
from runner.strategy.deepspeed.placed import PlacedZero
from runner.strategy.deepspeed.state import NamedPartitions


@final
class ZeroTrainable:
    """A model and its optimizer inside a DeepSpeed engine."""

    def __init__(
        self,
        placed: PlacedZero,
        engine: Any,
        *,
        state: NamedPartitions,
        gradients: Gradients,
        scaler: Scaler,
        world: World,
    ) -> None:
        """Start from step 0.

        Args:
            placed: the model inside the engine.
            engine: DeepSpeed's engine, with an optimizer.
            state: the model's and the optimizer's tensors by parameter name.
            gradients: those that the engine holds between a step's last backward and its update.
            scaler: the precision's loss scaler.
            world: all ranks of the run.
        """
        self._placed = placed
        self._engine = engine
        self._state = state
        self._gradients = gradients
        self._scaler = scaler
        self._count_estimate: CountEstimate = EstimatedCount(world) if scaler.scales else NoEstimate()
        self._stateful = {"scaler": scaler, "count_estimate": self._count_estimate}
        self._world = world
        self._factor: Tensor | float = 1.0
        engine.train()

    @property
    def models(self) -> Mapping[str, Module]:
        """The user's model, unwrapped."""
        return self._placed.models

    @property
    def optimizers(self) -> Mapping[str, torch.optim.Optimizer]:
        """The optimizer that DeepSpeed steps, whose parameters are flat partitions."""
        return {MODEL: self._engine.optimizer.optimizer}

    @property
    def exchange_bytes(self) -> int:
        """The size of all gradients, of parameters that stage 3 has partitioned too."""
        parameters = (one for model in self.models.values() for one in model.parameters() if one.requires_grad)
        return sum(getattr(one, "ds_numel", one.numel()) * one.element_size() for one in parameters)

    def forward_backward(self, batches: StepBatches) -> StepLoss:
        """Stage 1 exchanges gradients in the last micro-batch, stages 2 and 3 in every one."""
        self._gradients.begin()
        self._placed.sync_buffers()
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
            # The engine averages over ranks. A mean is divided before backward, as every rank knows the step's items.
            weight, items = loss.weight, batches.items
            factor = (
                weight * self._world.size / items if loss.is_mean else weight / self._count_estimate.of(loss, batches)
            )
            # Multiply even by 1: if it gets the tensor that forward returned, the engine divides by its micro-batches.
            self._engine.backward(loss.value * (factor * self._scaler.scale), scale_wrt_gas=False)
        count = finish()
        last = losses[-1]
        if last.is_mean:
            self._factor = 1.0
        else:
            self._factor = self._world.size * self._count_estimate.of(last, batches) / at_least_one(count)
        return StepLoss(losses, count)

    def gradients_finite(self) -> Tensor:
        """Whether the gradients of all ranks are finite. Collective; waits for the device."""
        return torch.tensor(self._gradients.finite())

    def update(self, *, measure: bool) -> Update:
        """Divide, clip, step, clear and gather the new weights, in DeepSpeed's own step.

        DeepSpeed skips a step whose gradient is not finite, with or without a loss scale.
        """
        norm = self._gradients.scale_and_clip(self._factor / self._scaler.scale)
        self._engine.step()
        applied = self._engine.was_step_applied()
        # DeepSpeed has checked for non-finite gradients on all ranks, and undone the scale.
        self._scaler.unscale((), 1.0, lambda _: torch.tensor(not applied))
        if not applied:
            self._gradients.clear_after_skip()
            return Update(False, None, self._scaler.record())
        measured = self._engine.get_global_grad_norm() if norm is None else norm
        return Update(True, torch.as_tensor(measured, dtype=torch.float32), self._scaler.record())

    def discard(self) -> None:
        """Make DeepSpeed skip the step like an overflow, which clears its gradients."""
        if self._gradients.force_skip():
            self._engine.step()
            self._gradients.clear_after_skip()

    def evaluate(self, micro_batches: Iterable[MicroBatch]) -> Iterator[MicroBatchLoss]:
        """Evaluate the placed model."""
        return self._placed.evaluate(micro_batches)

    def state_dict(self) -> State[Tensor]:
        """This rank's part of model and optimizer, by the model's parameter names."""
        state = self._state.state_dict()
        state.values |= state_dicts(self._stateful)
        return state

    def load_state_dict(self, saved: SavedState) -> None:
        """Continue from a checkpoint; each rank reads its own partitions."""
        load_state_dicts(self._stateful, self._state.load(saved))
