"""A model that is sharded among ranks: placed, and the step that trains it over this rank's part of the gradients."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, cast, final

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.nn import Module, Parameter
from torch.nn.utils import get_total_norm

from runner.protocols import (
    Axis,
    Builder,
    MicroBatch,
    MicroBatchLoss,
    SavedState,
    State,
    StepBatches,
    StepLoss,
    Update,
    World,
)
from runner.strategy.common.loss_module import LossModule
from runner.strategy.common.module_trainable import ModuleTrainable
from runner.strategy.common.placed_module import PlacedModule


@final
class PlacedShards:
    """A model of units, each sharded among the ranks of a shard group."""

    def __init__(
        self, root: LossModule, units: Sequence[FSDPModule], builder: Builder, world: World, *, sync_buffers: bool
    ) -> None:
        """Place a model that is already sharded.

        Args:
            root: the outermost unit; everything that the hook calls of the model happens inside its forward.
            units: the root first.
            builder: gives the precision.
            world: all ranks of the run.
            sync_buffers: give every rank the buffers of rank 0 before each step and each evaluation.
        """
        # In evaluation, too, the root gathers the parameters that it owns: the hook is always called through it.
        self.module = PlacedModule(root.model, builder, world.device, forward=root)
        self._units = units
        self._buffers = list(root.model.buffers()) if sync_buffers else []
        self._replicas = world.along(*world.axes.data)

    @property
    def models(self) -> Mapping[str, Module]:
        """The one model; its parameters are DTensors."""
        return self.module.models

    def sync_buffers(self) -> None:
        """Give every rank the buffers of rank 0, if the strategy asks for it."""
        for buffer in self._buffers:
            self._replicas.broadcast(buffer)

    def reshard(self) -> None:
        """Let the modules hold their shards again; without this, a forward leaves the root's parameters whole."""
        for unit in self._units:
            unit.reshard()

    def evaluate(self, micro_batches: Iterable[MicroBatch]) -> Iterator[MicroBatchLoss]:
        """The hook on the model; afterwards nothing stays gathered."""
        self.sync_buffers()
        try:
            yield from self.module.evaluate(micro_batches)
        finally:
            self.reshard()

    def state_dict(self) -> State[Tensor]:
        """This rank's shards."""
        self.reshard()
        return self.module.state_dict()

    def load_state_dict(self, saved: SavedState) -> None:
        """Every rank reads its own shards."""
        self.reshard()
        self.module.load_state_dict(saved)


@final
class ShardedTrainable:
    """A sharded model and its optimizer: ModuleTrainable's step, over this rank's part of each gradient."""

    def __init__(
        self,
        placed: PlacedShards,
        builder: Builder,
        world: World,
        *,
        no_sync: Callable[[], AbstractContextManager[Any]],
    ) -> None:
        """Set up for a fresh run.

        Args:
            no_sync: a context in which backward does not finish the exchange of gradients.
        """
        shard = world.along(Axis.SHARD)
        self._placed = placed
        self._module = ModuleTrainable(
            placed.module,
            builder,
            world,
            no_sync=no_sync,
            gradients_of=local_gradients,
            norm_of=lambda gradients: whole_norm(gradients, shard),
            found_anywhere=lambda found: shard.sum(found.to(shard.device)),
        )

    @property
    def models(self) -> Mapping[str, Module]:
        """The one model; its parameters are DTensors."""
        return self._module.models

    @property
    def optimizers(self) -> Mapping[str, torch.optim.Optimizer]:
        """The optimizer of this rank's shards."""
        return self._module.optimizers

    @property
    def exchange_bytes(self) -> int:
        """The gradients of this rank's shards."""
        return self._module.exchange_bytes

    def forward_backward(self, batches: StepBatches) -> StepLoss:
        """Forward and backward of every micro-batch; gradients end as this rank's part of the sum."""
        self._placed.sync_buffers()
        return self._module.forward_backward(batches)

    def gradients_finite(self) -> Tensor:
        """Whether this rank's parts are finite."""
        return self._module.gradients_finite()

    def update(self, *, measure: bool) -> Update:
        """Divide, clip by the norm of the whole gradient, step, clear."""
        return self._module.update(measure=measure)

    def discard(self) -> None:
        """Drop this rank's parts."""
        self._module.discard()

    def evaluate(self, micro_batches: Iterable[MicroBatch]) -> Iterator[MicroBatchLoss]:
        """As the placed model does."""
        return self._placed.evaluate(micro_batches)

    def state_dict(self) -> State[Tensor]:
        """Model and optimizer by the model's own names; tensors are this rank's shards."""
        self._placed.reshard()
        return self._module.state_dict()

    def load_state_dict(self, saved: SavedState) -> None:
        """Continue from a checkpoint; every rank reads its own shards."""
        self._placed.reshard()
        self._module.load_state_dict(saved)


@torch.no_grad()
def local_gradients(parameters: Sequence[Parameter]) -> list[Tensor]:
    """This rank's rows of each gradient, in place. Plain tensors: DTensor's dispatch costs more than the arithmetic."""
    return [cast("DTensor", parameter.grad).to_local() for parameter in parameters if parameter.grad is not None]


@torch.no_grad()
def whole_norm(gradients: list[Tensor], shard: World) -> Tensor:
    """The 2-norm over all shards. Collective over the shard group; the result lies where the gradients do."""
    own = get_total_norm(gradients)
    return shard.sum(own.square().to(shard.device)).sqrt().to(own.device)
