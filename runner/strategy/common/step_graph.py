"""A step as one compiled graph: forward, backward, division, clipping and update. Accumulation adds a second graph."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, final

import torch
from torch import Tensor
from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException
from torch.nn import Parameter

from runner.errors import HookError
from runner.protocols import Builder, MicroBatchLoss, SavedState, StepBatches, StepGraphs, StepLoss, Trainable, Update
from runner.protocols.step import MicroBatch
from runner.strategy.common.around import Around
from runner.strategy.common.forward_loss import at_least_one, forward_loss
from runner.strategy.common.gradients import norm_of_whole
from runner.strategy.common.placed_module import PlacedModule
from runner.strategy.common.replicas import Replicas

logger = logging.getLogger(__name__)
OUTSIDE = ("params", "lr")
WAY_OUT = "compile.what=model compiles the model alone, and leaves the loss hook as it is."


@final
class GraphTrainable(Around):
    """Takes the steps of a trainable as graphs.

    The very first step of a run is taken without: it makes the optimizer's state, and finds what is wrong with hooks.
    """

    def __init__(
        self,
        inner: Trainable,
        placed: PlacedModule,
        builder: Builder,
        graphs: StepGraphs,
        *,
        replicas: Callable[[Sequence[Parameter]], Replicas] | None = None,
    ) -> None:
        """Compile nothing yet.

        Args:
            inner: the trainable whose steps these are.
            placed: its model.
            builder: provides the clipping.
            graphs: compiles, and updates parameters inside a graph.
            replicas: the ranks that train copies of the model, given its trained parameters; None = there is one copy.
        """
        super().__init__(inner)
        self._forward = placed.forward
        self._clip = builder.clip
        self._optimizer = next(iter(inner.optimizers.values()))
        self._parameters = [one for group in self._optimizer.param_groups for one in group["params"]]
        self._replicas = None if replicas is None else replicas(self._parameters)
        device = self._parameters[0].device
        self._rates = [torch.zeros((), dtype=torch.float64, device=device) for _ in self._optimizer.param_groups]
        self._in_graph = graphs.update
        self._sizes = [len(group["params"]) for group in self._optimizer.param_groups]
        self._settings: list[dict[str, Any]] = []  # of each group, but its rate
        self._states: list[Mapping[str, Tensor]] = []  # of each parameter
        self._accumulate = _Graph("a micro-batch", graphs.compile(self._add_gradients))
        self._finish = _Graph("the step", graphs.compile(self._step))
        self._sums: list[Tensor] = []  # of the gradients of a step's micro-batches but the last
        self._weights: dict[float, Tensor] = {}  # of micro-batches, as tensors
        self._begun = False

    def load_state_dict(self, saved: SavedState) -> None:
        """Continue from a checkpoint, which has the optimizer's state, unless another optimizer wrote it."""
        super().load_state_dict(saved)
        self._states = []
        needed, found = self._in_graph.state, self._optimizer.state.values()
        self._begun = not needed or (bool(found) and all(state.keys() >= {*needed} for state in found))

    def take_step(self, batches: StepBatches, *, measure: bool) -> tuple[StepLoss, Update]:
        """Call the graphs. The step with `measure` is one of its own: a norm takes a tenth of a small step."""
        if not self._begun:
            self._begun = True
            return self.forward_backward(batches), self.update(measure=measure)
        if self._replicas is not None:
            self._replicas.begin_step()
        self._look_up()
        *earlier, last = batches.micro_batches
        if earlier and not self._sums:
            self._sums = [torch.zeros_like(parameter) for parameter in self._parameters]
        losses: list[MicroBatchLoss] = []
        count: Tensor | int = 0
        summed: frozenset[int] = frozenset()
        for micro_batch in earlier:
            loss, found = self._accumulate(micro_batch, self._weight_of(micro_batch, batches))
            losses.append(loss)
            count, summed = count + loss.count, summed.union(found)
        sums = [one if number in summed else None for number, one in enumerate(self._sums)] if earlier else []
        loss, norm, total, unused, new = self._finish(last, self._weight_of(last, batches), count, sums, measure)
        losses.append(loss)
        if self._replicas is not None:
            self._replicas.check_all_used(self._named(unused))
        self._check_all_known(self._named(new))
        return StepLoss(losses, batches.items if loss.is_mean else total), Update(True, norm)

    def _look_up(self) -> None:
        """Get what may change between steps. Rates are not among a group's settings, whose values are in the graph."""
        groups = self._optimizer.param_groups
        for rate, group in zip(self._rates, groups, strict=True):
            rate.fill_(group["lr"])
        self._settings = [{name: value for name, value in one.items() if name not in OUTSIDE} for one in groups]
        if not self._states:
            self._states = [self._optimizer.state.get(parameter, {}) for parameter in self._parameters]

    def _named(self, numbers: Sequence[int]) -> str:
        """The names of these parameters, for a message."""
        if not numbers:
            return ""
        names = {parameter: name for name, parameter in next(iter(self.models.values())).named_parameters()}
        return ", ".join(names[self._parameters[number]] for number in numbers)

    def _check_all_known(self, new: str) -> None:
        """Raise HookError if there are parameters with a gradient, but no state: the first step made none for them."""
        if new:
            rule = "The first step, which makes the optimizer's state, did not use what it depends on now"
            raise HookError(f"the loss depends on {new} for the first time. {rule}. {WAY_OUT}")

    def _weight_of(self, micro_batch: MicroBatch, batches: StepBatches) -> Tensor | None:
        """What a mean over the micro-batch is multiplied by; None = 1."""
        weight = micro_batch.items / batches.items
        if weight == 1:
            return None
        if weight not in self._weights:
            self._weights[weight] = torch.tensor(weight, device=self._rates[0].device)
        return self._weights[weight]

    def _add_gradients(self, micro_batch: MicroBatch, weight: Tensor | None) -> tuple[MicroBatchLoss, list[int]]:
        """Traced: a micro-batch that is not the last. Also returns the numbers of the parameters with a gradient."""
        loss, gradients = self._gradients(micro_batch, weight)
        with torch.no_grad():
            for total, gradient in zip(self._sums, gradients, strict=True):
                if gradient is not None:
                    total.add_(gradient)
        return loss, [number for number, gradient in enumerate(gradients) if gradient is not None]

    def _step(
        self,
        micro_batch: MicroBatch,
        weight: Tensor | None,
        count: Tensor | int,
        sums: list[Tensor | None],
        measure: bool,
    ) -> tuple[MicroBatchLoss, Tensor | None, Tensor | int, list[int], list[int]]:
        """Traced: the last micro-batch, given the count and the sums of those before it, and the update.

        Also returns the numbers of the parameters without a gradient, and of those without state, which stay as they
        are.
        """
        loss, found = self._gradients(micro_batch, weight)
        with torch.no_grad():
            if sums:
                found = [_added(last, before) for last, before in zip(found, sums, strict=True)]
            unused = [number for number, gradient in enumerate(found) if gradient is None]
            total = count + loss.count
            if self._replicas is not None:
                found = [*self._replicas.sum(found)]
                total = total if loss.is_mean else self._replicas.sum_count(total)
            of = {number: gradient for number, gradient in enumerate(found) if gradient is not None}
            if not loss.is_mean:
                of = {number: gradient / at_least_one(total) for number, gradient in of.items()}
            needs_norm = measure or self._clip.norm is not None
            norm = norm_of_whole(list(of.values()), self._parameters) if needs_norm else None
            new = self._update(self._clipped(of, norm))
            for one in sums:
                if one is not None:
                    one.zero_()
        return loss, norm, total, unused, new

    def _update(self, gradients: dict[int, Tensor]) -> list[int]:
        """Traced. Returns the numbers of the parameters that have no state yet."""
        new = [number for number in gradients if any(name not in self._states[number] for name in self._in_graph.state)]
        end = 0
        for size, settings, rate in zip(self._sizes, self._settings, self._rates, strict=True):
            end += size
            if chosen := [number for number in range(end - size, end) if number in gradients and number not in new]:
                self._in_graph.update(
                    [self._parameters[number] for number in chosen],
                    [gradients[number] for number in chosen],
                    [self._states[number] for number in chosen],
                    settings,
                    rate,
                )
        return new

    def _gradients(self, micro_batch: MicroBatch, weight: Tensor | None) -> tuple[MicroBatchLoss, list[Tensor | None]]:
        loss = forward_loss(self._forward, micro_batch)
        factor = weight if loss.is_mean else None if loss.weight == 1 else loss.weight
        value = loss.value if factor is None else loss.value * factor
        gradients = torch.autograd.grad(value, self._parameters, allow_unused=True)
        return loss._replace(value=loss.value.detach()), list(gradients)

    def _clipped(self, of: dict[int, Tensor], norm: Tensor | None) -> dict[int, Tensor]:
        clip = self._clip
        if (limit := clip.value) is not None:
            of = {number: gradient.clamp(-limit, limit) for number, gradient in of.items()}
        if clip.norm is not None and norm is not None:
            length = norm if clip.value is None else norm_of_whole(list(of.values()), self._parameters)
            factor = torch.clamp(clip.norm / (length + 1e-6), max=1.0)
            of = {number: gradient * factor for number, gradient in of.items()}
        return of


def _added(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    """The sum of two gradients, either of which may not exist."""
    return other if one is None else one if other is None else one + other


@final
class _Graph:
    """A compiled function. Says how long it took to compile, and why it cannot be."""

    def __init__(self, what: str, function: Callable[..., Any]) -> None:
        self._what = what
        self._function = function
        self._is_compiled = False

    def __call__(self, *args: Any) -> Any:
        began = time.monotonic()
        try:
            result = self._function(*args)
        except FailOnRecompileLimitHit as error:
            limit = torch._dynamo.config.recompile_limit
            rule = f"{self._what} was compiled {limit} times, which is torch's limit, for batches of different shapes"
            raise HookError(f"{rule}. Use compile.dynamic=true or null, or let collate pad to fewer shapes.") from error
        except TorchDynamoException as error:
            raise HookError(f"torch cannot compile {self._what} as one graph: {_reason(error)} {WAY_OUT}") from error
        if not self._is_compiled:
            self._is_compiled = True
            logger.info("compiled %s in %.1f s", self._what, time.monotonic() - began)
        return result


def _reason(error: Exception) -> str:
    """The first line of torch's explanation; with the next, where it only announces that."""
    first, _, rest = str(error).strip().partition("\n")
    return f"{first} {rest.strip().splitlines()[0]}" if first.endswith(":") and rest.strip() else first
