"""The step of every strategy whose model is a torch module with gradients in place: Single, DDP and FSDP share it."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, final

import torch
from torch import Tensor
from torch.nn import Module

from runner.model.local_part import local_part
from runner.protocols import (
    Builder,
    MicroBatch,
    MicroBatchLoss,
    SavedState,
    State,
    Stateful,
    StepBatches,
    StepLoss,
    Trainable,
    Update,
    World,
)
from runner.protocols.state import MODEL
from runner.strategy.common.count_estimate import CountEstimate, EstimatedCount, NoEstimate, power_of_two
from runner.strategy.common.forward_loss import as_total, at_least_one, check_has_gradient, forward_loss
from runner.strategy.common.gradients import WHOLE, Gradients, all_finite
from runner.strategy.common.named_state import add_optimizer_state, load_named_state, settings
from runner.strategy.common.optimizer_step import OptimizerStep, without_dynamo
from runner.strategy.common.placed_module import Forward, PlacedModule, place_whole
from runner.strategy.common.stateful import NO_STATE, load_state_dicts, state_dicts

STEPPED = Update(stepped=True)
Rounds = Callable[[StepBatches, Callable[[MicroBatchLoss], Tensor]], StepLoss]
"""Takes micro-batches forward and backward, and finds the step's count; given what makes a loss the scalar that its
backward begins at."""


@final
class ModuleTrainable:
    """A module and its optimizer. `forward` and `no_sync` control how ranks exchange gradients; the rest is here."""

    def __init__(
        self,
        placed: PlacedModule,
        builder: Builder,
        world: World,
        *,
        forward: Forward | None = None,
        no_sync: Callable[[], AbstractContextManager[Any]] = nullcontext,
        averaged: int = 1,
        gradients: Gradients = WHOLE,
        narrow_exchange: bool = False,
        rounds: Rounds | None = None,
        stateful: Mapping[str, Stateful] = NO_STATE,
        counted_over: Callable[[], World] | None = None,
    ) -> None:
        """Start from step 0.

        Args:
            placed: the model; its optimizer is built here.
            builder: provides the optimizer, the precision and the clipping.
            world: all ranks of the run.
            forward: the loss hook in training; its backward exchanges gradients, except in `no_sync`. None = as placed.
            no_sync: a context in which backward only accumulates gradients on this rank.
            averaged: what the exchange divides the sum over ranks by: 1, or the number of ranks (DDP).
            gradients: what this rank has of them.
            narrow_exchange: whether the gradient of a sum may overflow the dtype of the exchange.
            rounds: takes all micro-batches of a step forward and backward; None = one after the other, on this rank.
            stateful: further state for checkpoints, by name.
            counted_over: the ranks whose items the gradient of the coming step sums over, if these are not all that the
                loss is summed over; they may change from step to step.
        """
        self._placed = placed
        with without_dynamo():
            self._optimizer = builder.build_optimizer(placed.model.named_parameters())
        self._optimizer_step = OptimizerStep(self._optimizer)
        self._forward = placed.forward if forward is None else placed.in_autocast(forward)
        self._no_sync = no_sync
        self._averaged = averaged
        self._scaler = builder.precision.scaler()
        loss_world = world.along(*world.axes.loss)
        self._counted_over = counted_over or (lambda: loss_world)
        self._knows_items = counted_over is None  # whether the gradient sums over all items of the step
        estimates = self._scaler.scales or narrow_exchange
        self._rounds, self._estimates = rounds, estimates
        by_count = estimates and rounds is None
        self._count_estimate: CountEstimate = EstimatedCount(loss_world) if by_count else NoEstimate()
        self._stateful = {"scaler": self._scaler, "count_estimate": self._count_estimate, **stateful}
        self._clip = clip = builder.clip
        # Whether `update` must process gradients even if they are divided already.
        self._always_processes = clip.norm is not None or clip.value is not None or self._scaler.scales
        self._gradients = gradients
        self._parameters = [parameter for group in self._optimizer.param_groups for parameter in group["params"]]
        self._divided = True  # whether the gradients are divided by the step's count already;
        self._factor: Tensor | float = 1.0  # if not, what they must still be multiplied by
        self._built_groups = settings(self._optimizer)
        placed.model.train()

    @property
    def models(self) -> Mapping[str, Module]:
        """The user's model, unwrapped."""
        return self._placed.models

    @property
    def optimizers(self) -> Mapping[str, torch.optim.Optimizer]:
        """The model's optimizer, by the model's name."""
        return {MODEL: self._optimizer}

    @property
    def exchange_bytes(self) -> int:
        """The size of the gradients of this rank's parameters."""
        return sum(local_part(parameter).nbytes for parameter in self._parameters)

    def forward_backward(self, batches: StepBatches) -> StepLoss:
        """Forward and backward of every micro-batch; ranks exchange gradients during the last."""
        if self._rounds is not None:
            return self._in_rounds(self._rounds, batches)
        losses = []
        for micro_batch in batches.micro_batches[:-1]:
            with self._no_sync():
                losses.append(loss := self._forward_loss(micro_batch))
                self._backward(loss, batches)
        losses.append(self._forward_loss(batches.micro_batches[-1]))
        return StepLoss(losses, self._backward_and_count(losses, batches))

    def gradients_finite(self) -> Tensor:
        """Whether this rank's gradients are finite, without waiting for the device."""
        return all_finite(self._gradients.of(self._parameters))

    def update(self, *, measure: bool) -> Update:
        """Divide, clip, step, clear. Division is fused with the multiplication of clipping, if there is one."""
        update = self._divide_and_clip(measure) if measure or self._always_processes or not self._divided else STEPPED
        if update.stepped:
            self._optimizer_step()
        self.discard()
        return update

    def discard(self) -> None:
        """Set all gradients to None."""
        for parameter in self._parameters:
            parameter.grad = None

    def evaluate(self, micro_batches: Iterable[MicroBatch]) -> Iterator[MicroBatchLoss]:
        """Call the loss hook on the unwrapped model, without communication."""
        return self._placed.evaluate(micro_batches)

    def state_dict(self) -> State[Tensor]:
        """Model and optimizer by the model's parameter names."""
        state = self._placed.state_dict()
        add_optimizer_state(
            state,
            self._placed.model,
            self._optimizer,
            built_groups=self._built_groups,
            as_stored=self._placed.as_stored,
        )
        state.values |= state_dicts(self._stateful)
        return state

    def load_state_dict(self, saved: SavedState) -> None:
        """Continue from a checkpoint; each rank reads its own part."""
        state = self._placed.state_dict()
        load_named_state(
            state,
            self._placed.model,
            self._optimizer,
            saved,
            built_groups=self._built_groups,
            as_stored=self._placed.as_stored,
            elsewhere=self._placed.elsewhere,
        )
        load_state_dicts(self._stateful, state.values)

    def _forward_loss(self, micro_batch: MicroBatch) -> MicroBatchLoss:
        loss = forward_loss(self._forward, micro_batch)
        return loss if self._knows_items else as_total(loss)

    def _in_rounds(self, rounds: Rounds, batches: StepBatches) -> StepLoss:
        """Sum gradients of totals, by whatever rank has a loss; `update` divides them by the count of all ranks."""
        # Before the first backward only some ranks see a count, but all know the items.
        estimate = power_of_two(batches.items) if self._estimates else 1.0
        scale = self._scaler.scale / estimate if self._scaler.scales else 1.0 / estimate

        def weighted(loss: MicroBatchLoss) -> Tensor:
            factor = loss.weight * scale
            return loss.value if factor == 1.0 else loss.value * factor

        result = rounds(batches, weighted)
        self._divided = False
        self._factor = self._averaged * estimate / at_least_one(result.count)
        return result

    def _backward(self, loss: MicroBatchLoss, batches: StepBatches) -> None:
        """Run backward. A mean over items is divided before it, since every rank knows the items of the step."""
        value, weight, _, is_mean, *_ = loss
        # Multiply first: a mean over all items of the step then has the factor 1 exactly, and costs nothing.
        estimate = self._count_estimate
        factor = weight * self._averaged / batches.items if is_mean else weight / estimate.of(loss, batches)
        _backward(value, factor * self._scaler.scale if self._scaler.scales else factor)

    def _backward_and_count(self, losses: Sequence[MicroBatchLoss], batches: StepBatches) -> Tensor | int:
        """Run the backward of the last micro-batch and return the count that the sum of the step is divided by.

        A count that comes from the hook is known only after the last forward: a step of a single micro-batch is divided
        at once; otherwise the count is summed over ranks while backward runs, and `update` divides.
        """
        last, world = losses[-1], self._counted_over()
        self._divided = last.is_mean or (len(losses) == 1 and world.size == 1)
        if last.is_mean:
            self._backward(last, batches)
            return batches.items
        if self._divided:
            _backward(last.value / at_least_one(last.count), self._scaler.scale)
            return last.count
        # float32 counts exactly up to 2^24, and beyond that as precisely as the gradients that it divides.
        local_count = torch.zeros((), device=last.value.device)
        for loss in losses:
            local_count += loss.count
        finish = world.start_sum(local_count)
        self._backward(last, batches)
        count = finish()
        self._factor = self._averaged * self._count_estimate.of(last, batches) / at_least_one(count)
        return count

    def _divide_and_clip(self, measure: bool) -> Update:
        norm_of = self._gradients.norm
        gradients = self._gradients.of(self._parameters)
        factor = 1.0 if self._divided else self._factor
        factor, finite = self._scaler.unscale(gradients, factor, self._gradients.found_inf)
        if not finite:
            return Update(False, None, self._scaler.record())
        clip = self._clip
        norm = norm_of(gradients, self._parameters) * factor if measure or clip.norm is not None else None
        if clip.value is not None:
            _multiply(gradients, factor)
            factor = 1.0
            torch._foreach_clamp_min_(gradients, -clip.value)
            torch._foreach_clamp_max_(gradients, clip.value)
        if clip.norm is not None:
            length = norm_of(gradients, self._parameters) if norm is None or clip.value is not None else norm
            # 1e-6 and the clamp as in torch.nn.utils.clip_grads_with_norm_: the same bits as a hand-written loop.
            factor = torch.clamp(clip.norm / (length + 1e-6), max=1.0) * factor
        _multiply(gradients, factor)
        return Update(True, norm, self._scaler.record())


def train_alone(builder: Builder, world: World) -> Trainable:
    """The whole model and its optimizer on this rank, which exchanges nothing; its steps are graphs if so built."""
    placed = place_whole(builder, world)
    trainable = ModuleTrainable(placed, builder, world)
    if builder.step_graphs is None:
        return trainable
    from runner.strategy.common.step_graph import GraphTrainable  # imports torch's compiler

    return GraphTrainable(trainable, placed, builder, builder.step_graphs)


def _multiply(gradients: list[Tensor], factor: Tensor | float) -> None:
    if not gradients:
        return
    if isinstance(factor, Tensor):
        # Gradients may be offloaded to the host, while the factor is on the device.
        torch._foreach_mul_(gradients, factor.to(gradients[0].device))
    elif factor != 1.0:
        torch._foreach_mul_(gradients, factor)


def _backward(loss: Tensor, factor: float) -> None:
    check_has_gradient(loss)
    (loss if factor == 1.0 else loss * factor).backward()  # type: ignore[no-untyped-call]
