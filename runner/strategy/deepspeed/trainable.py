"""The step under a DeepSpeed engine: ZeRO, Rajbhandari et al. (SC 2020)."""

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
        """Set up for a fresh run.

        Args:
            placed: the model in the engine.
            engine: DeepSpeed's, with an optimizer.
            state: the model and its optimizer by name.
            gradients: what the engine holds between a step's last backward and its update.
            scaler: of the precision.
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
        """The user's model."""
        return self._placed.models

    @property
    def optimizers(self) -> Mapping[str, torch.optim.Optimizer]:
        """What DeepSpeed steps for each of its flat partitions."""
        return {MODEL: self._engine.optimizer.optimizer}

    @property
    def exchange_bytes(self) -> int:
        """A gradient for each parameter."""
        return sum(parameter.nbytes for model in self.models.values() for parameter in model.parameters())

    def forward_backward(self, batches: StepBatches) -> StepLoss:
        """Forward and backward every round; stage 1 exchanges gradients in the last, stages 2 and 3 in each."""
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

    def gradients_finite(self) -> Tensor:
        """By DeepSpeed's own check, over all ranks. Collective; waits for the device."""
        return torch.tensor(self._gradients.finite())

    def update(self, *, measure: bool) -> Update:
        """Divide, clip, step, clear, give the new weights to all: DeepSpeed's own step.

        It takes no step whose gradient is not finite, with a loss scale or without.
        """
        norm = self._gradients.finish(self._factor / self._scaler.scale)
        self._engine.step()
        applied = self._engine.was_step_applied()
        # DeepSpeed has looked for what is not finite, on all ranks, and undone the scale.
        self._scaler.unscale((), 1.0, lambda _: torch.tensor(not applied))
        if not applied:
            self._gradients.forget()
            return Update(False, None, self._scaler.record())
        measured = self._engine.get_global_grad_norm() if norm is None else norm
        return Update(True, torch.as_tensor(measured, dtype=torch.float32), self._scaler.record())

    def discard(self) -> None:
        """Have DeepSpeed skip the step as it skips an overflow, which clears all that it keeps of the gradients."""
        if self._gradients.spoil():
            self._engine.step()
            self._gradients.forget()

    def evaluate(self, micro_batches: Iterable[MicroBatch]) -> Iterator[MicroBatchLoss]:
        """As the placed model does."""
        return self._placed.evaluate(micro_batches)

    def state_dict(self) -> State[Tensor]:
        """Model and optimizer by the model's own names, this rank's part of them."""
        state = self._state.state_dict()
        state.values |= state_dicts(self._stateful)
        return state

    def load_state_dict(self, saved: SavedState) -> None:
        """Continue from a checkpoint; every rank reads what it owns."""
        load_state_dicts(self._stateful, self._state.load(saved))
