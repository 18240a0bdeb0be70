"""The training step of replicas that take steps of their own, around that of one replica."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, final

import torch
from torch import Tensor
from torch.nn import Parameter

from runner.errors import ModelError
from runner.model.local_part import local_part
from runner.protocols import (
    SavedState,
    State,
    StepBatches,
    StepLoss,
    StoredTensor,
    Trainable,
    Update,
    World,
)
from runner.protocols.state import MODEL
from runner.strategy.common.around import Around
from runner.strategy.local_sgd.exchanges import Exchanges
from runner.world.exchange import BUCKET_BYTES, mean_over, sum_over

Named = tuple[str, Parameter]
OUTER = "outer"
"""The name of what replicas keep in common besides the weights, beside the model's optimizer."""
STEPS = "steps_of_replicas"


class Outer(Protocol):
    """What replicas do with their weights when they exchange them. All methods are called on every rank."""

    def exchange(self, names: Sequence[str]) -> None:
        """Make these parameters the same on all replicas. Collective."""
        ...

    def restart(self) -> None:
        """Begin with the weights of now, which are the same on all replicas."""
        ...

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        """The live tensors, the same on all replicas, by parameter and key."""
        ...

    def wanted(self, saved: SavedState) -> dict[str, dict[str, Tensor]]:
        """Tensors for a checkpoint to fill; empty if it has none of these."""
        ...

    def load(self, state: dict[str, dict[str, Tensor]]) -> None:
        """Continue from tensors that `wanted` returned and a checkpoint has filled."""
        ...


@final
class WarmUp:
    """Counts optimizer steps, from the first of the run on."""

    def __init__(self, steps: int) -> None:
        self._steps = steps
        self.taken = 0

    @property
    def lasts(self) -> bool:
        """Whether the next step still belongs to the warm-up."""
        return self.taken < self._steps


@final
class ReplicaTrainable(Around):
    """One replica among several. Between exchanges it is trained as if it were alone."""

    def __init__(
        self,
        inner: Trainable,
        replicas: World,
        *,
        exchanges: Exchanges,
        warm_up: WarmUp,
        open_outer: Callable[[Sequence[Named], World], Outer],
    ) -> None:
        """Start from step 0, with the same weights on all replicas.

        Args:
            inner: the step of this replica; during the warm-up it counts the items of all replicas.
            replicas: the ranks that hold the same parts of the model.
            open_outer: makes what exchanges the parameters, by the model's names.
        """
        super().__init__(inner)
        self._replicas = replicas
        self._exchanges = exchanges
        self._warm_up = warm_up
        trained = {
            id(parameter)
            for optimizer in inner.optimizers.values()
            for group in optimizer.param_groups
            for parameter in group["params"]
        }
        named = [one for one in inner.models[MODEL].named_parameters() if id(one[1]) in trained]
        self._named = named
        self._outer = open_outer(named, replicas)
        self._fragments = divided(named, exchanges.fragments)
        self._used: list[bool] | None = None

    @property
    def exchange_bytes(self) -> int:
        """The size of the buffer in which weights are exchanged, and of its sum."""
        return 2 * max(BUCKET_BYTES, *(4 * local_part(parameter).numel() for _, parameter in self._named))

    def forward_backward(self, batches: StepBatches) -> StepLoss:
        """Forward and backward of this replica's micro-batches; in the warm-up, gradients are summed over replicas."""
        loss = self._inner.forward_backward(batches)
        if self._warm_up.lasts and self._replicas.size > 1:
            self._sum_gradients()
        return loss

    def update(self, *, measure: bool) -> Update:
        """One step of this replica, and an exchange if it is time. The norm is the mean of the replicas' norms."""
        update = self._inner.update(measure=measure)
        if update.stepped:
            self._warm_up.taken += 1
            self._exchange(self._warm_up.taken)
        if measure and update.grad_norm is not None and self._replicas.size > 1:
            norm = update.grad_norm
            mean = self._replicas.sum(norm.to(self._replicas.device)) / self._replicas.size
            return update._replace(grad_norm=mean.to(norm.device))
        return update

    def state_dict(self) -> State[Tensor]:
        """The state of this replica, and of what the replicas have in common."""
        state = self._inner.state_dict()
        if common := self._outer.state_dict():
            state.optimizers[OUTER] = common
        state.values[STEPS] = self._warm_up.taken
        return state

    def load_state_dict(self, saved: SavedState) -> None:
        """Continue from a checkpoint. After one of another strategy, replicas have in common what it holds."""
        reader = _Reader(saved, self._outer.wanted(saved))
        self._inner.load_state_dict(reader)
        # Another strategy does not count for replicas; the run's own step is in every checkpoint of a run.
        self._warm_up.taken = reader.values.get(STEPS, reader.values.get("step", 0))
        if reader.common:
            self._outer.load(reader.common)
        else:
            self._outer.restart()

    def _exchange(self, step: int) -> None:
        if step == self._exchanges.warmup_steps:
            self._outer.restart()
        fragment = self._exchanges.fragment_after(step)
        if fragment is None:
            return
        self._outer.exchange(self._fragments[fragment])
        if fragment == len(self._fragments) - 1:
            mean_over(self._replicas, list(self._inner.models[MODEL].buffers()))

    def _sum_gradients(self) -> None:
        """Sum gradients over replicas. The parameters that any replica uses in its first step are used in all.

        Raises:
            ModelError: a parameter has a gradient that no replica had in the first step.
        """
        has_gradient = [parameter.grad is not None for _, parameter in self._named]
        if self._used is None:
            self._used = [any(votes) for votes in zip(*self._replicas.gather_objects(has_gradient), strict=True)]
        gradients = []
        for (name, parameter), used, has in zip(self._named, self._used, has_gradient, strict=True):
            if has and not used:
                raise ModelError(
                    f"{name} has a gradient that no replica had before: in strategy.warmup_steps, replicas sum the "
                    "gradients of the same parameters in each step. Use strategy.warmup_steps=0, or use all "
                    "parameters in every step."
                )
            if used and not has:
                parameter.grad = torch.zeros_like(parameter)
            if used and parameter.grad is not None:
                gradients.append(local_part(parameter.grad))
        sum_over(self._replicas, gradients)


def divided(named: Sequence[Named], fragments: int) -> list[list[str]]:
    """The names in so many parts, in the model's order, each with about the same number of elements."""
    total = sum(parameter.numel() for _, parameter in named)
    parts: list[list[str]] = [[] for _ in range(fragments)]
    done = 0
    for name, parameter in named:
        middle = done + parameter.numel() / 2
        parts[min(int(middle * fragments / max(total, 1)), fragments - 1)].append(name)
        done += parameter.numel()
    return parts


@final
class _Reader:
    """A checkpoint for the replica to read, with what the replicas have in common in the same pass."""

    def __init__(self, saved: SavedState, common: dict[str, dict[str, Tensor]]) -> None:
        self._saved = saved
        self.common = common
        self.values: Mapping[str, Any] = {}

    @property
    def path(self) -> Path:
        """Its directory."""
        return self._saved.path

    @property
    def stored(self) -> State[StoredTensor]:
        """What the checkpoint has."""
        return self._saved.stored

    def read(self, state: State[Tensor]) -> None:
        """Load the state. Collective."""
        if self.common:
            state.optimizers[OUTER] = self.common
        self._saved.read(state)
        self.values = dict(state.values)
