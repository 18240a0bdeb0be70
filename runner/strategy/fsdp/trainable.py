"""A model that is sharded among ranks, and its training step over this rank's shard of the gradients."""

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
    World,
)
from runner.strategy.common.around import Around
from runner.strategy.common.gradients import Gradients
from runner.strategy.common.loss_module import LossModule
from runner.strategy.common.module_trainable import ModuleTrainable
from runner.strategy.common.named_state import AsStored, unchanged
from runner.strategy.common.placed_module import PlacedModule


@final
class PlacedShards:
    """A model of units, each sharded among the ranks of a shard group."""

    def __init__(
        self,
        root: LossModule,
        units: Sequence[FSDPModule],
        builder: Builder,
        world: World,
        *,
        sync_buffers: bool,
        as_stored: AsStored = unchanged,
    ) -> None:
        """Hold a model that is already sharded.

        Args:
            root: the outermost unit; the loss hook runs inside its forward.
            units: all units, the root first.
            builder: gives the precision.
            world: all ranks of the run.
            sync_buffers: broadcast the buffers of rank 0 before each step and each evaluation.
            as_stored: what stands for a tensor of a parameter in checkpoints.
        """
        # The hook is called through the root in evaluation too, so that the root gathers the parameters that it owns.
        self.module = PlacedModule(root.model, builder, world.device, forward=root, as_stored=as_stored)
        self._units = units
        self._buffers = list(root.model.buffers()) if sync_buffers else []
        self._replicas = world.along(*world.axes.data)

    @property
    def models(self) -> Mapping[str, Module]:
        """The one model; its parameters are DTensors."""
        return self.module.models

    def sync_buffers(self) -> None:
        """Broadcast the buffers of rank 0, if the strategy asks for it. Collective."""
        for buffer in self._buffers:
            self._replicas.broadcast(buffer)

    def reshard(self) -> None:
        """Free gathered parameters; a forward without backward leaves those of the root gathered."""
        for unit in self._units:
            unit.reshard()

    def evaluate(self, micro_batches: Iterable[MicroBatch]) -> Iterator[MicroBatchLoss]:
        """Call the loss hook through the root; afterwards no parameter stays gathered."""
        self.sync_buffers()
        try:
            yield from self.module.evaluate(micro_batches)
        finally:
            self.reshard()

    def state_dict(self) -> State[Tensor]:
        """This rank's shards, as DTensors."""
        self.reshard()
        return self.module.state_dict()

    def load_state_dict(self, saved: SavedState) -> None:
        """Load this rank's own shards."""
        self.reshard()
        self.module.load_state_dict(saved)


@final
class ShardedTrainable(Around):
    """A sharded model and its optimizer: ModuleTrainable's step, over this rank's shard of each gradient."""

    def __init__(
        self,
        placed: PlacedShards,
        builder: Builder,
        world: World,
        *,
        no_sync: Callable[[], AbstractContextManager[Any]],
        stepping: World | None = None,
        counted_over: Callable[[], World] | None = None,
    ) -> None:
        """Start from step 0.

        Args:
            world: the ranks that train this copy of the model.
            no_sync: a context in which backward does not complete the reduction of gradients.
            stepping: the ranks that take or skip a step together; None = those of the shard group.
            counted_over: as in ModuleTrainable.
        """
        shard = world.along(Axis.SHARD)
        together = stepping or shard
        module = ModuleTrainable(
            placed.module,
            builder,
            world,
            no_sync=no_sync,
            gradients=Gradients(
                of=local_gradients,
                norm=lambda gradients, _: global_norm(gradients, shard),
                found_inf=lambda found: together.sum(found.to(shard.device)),
            ),
            counted_over=counted_over,
        )
        super().__init__(module)
        self._placed = placed

    def forward_backward(self, batches: StepBatches) -> StepLoss:
        """Forward and backward of every micro-batch; leaves this rank's shard of the summed gradients."""
        self._placed.sync_buffers()
        return super().forward_backward(batches)

    def evaluate(self, micro_batches: Iterable[MicroBatch]) -> Iterator[MicroBatchLoss]:
        """Evaluate the placed model."""
        return self._placed.evaluate(micro_batches)

    def state_dict(self) -> State[Tensor]:
        """Model and optimizer by the model's parameter names; tensors are this rank's shards."""
        self._placed.reshard()
        return super().state_dict()

    def load_state_dict(self, saved: SavedState) -> None:
        """Continue from a checkpoint; each rank reads its own shards."""
        self._placed.reshard()
        super().load_state_dict(saved)


@torch.no_grad()
def local_gradients(parameters: Sequence[Parameter]) -> list[Tensor]:
    """This rank's shard of each gradient, as a plain tensor: DTensor's dispatch costs more than the arithmetic."""
    return [cast("DTensor", parameter.grad).to_local() for parameter in parameters if parameter.grad is not None]


@torch.no_grad()
def global_norm(gradients: list[Tensor], shard: World) -> Tensor:
    """The 2-norm over all shards. Collective over the shard group; the result is on the device of the gradients."""
    own = get_total_norm(gradients)
    return shard.sum(own.square().to(shard.device)).sqrt().to(own.device)
