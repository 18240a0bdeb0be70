"""The step of a model that is cut among ranks: ModuleTrainable's, over this rank's part of the gradients."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, cast, final

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.nn import Module, Parameter
from torch.nn.utils import get_total_norm

from runner.protocols import (
    Clip,
    MicroBatch,
    MicroBatchLoss,
    Precision,
    State,
    StepBatches,
    StepLoss,
    StoredTensor,
    Update,
    World,
)
from runner.strategy.common.loss_module import LossModule
from runner.strategy.common.module_trainable import ModuleTrainable


@final
class ShardedTrainable:
    """A model of units and the optimizer of their shards."""

    def __init__(
        self,
        *,
        root: LossModule,
        optimizer: torch.optim.Optimizer,
        units: Sequence[FSDPModule],
        no_sync: Callable[[], AbstractContextManager[Any]],
        shard_group: dist.ProcessGroup,
        buffers: Sequence[Tensor],
        precision: Precision,
        clip: Clip,
        world: World,
    ) -> None:
        """Set up for a fresh run.

        Args:
            root: outermost unit; everything that the hook calls of the model happens inside its forward.
            no_sync: a context in which backward does not finish the exchange of gradients.
            shard_group: the ranks that hold one copy of the model between them.
            buffers: those that rank 0 gives to all before each step.
        """
        self.model = root.model
        self.optimizer = optimizer
        self._units = units
        self._buffers = buffers
        self._replica = ModuleTrainable(
            model=root.model,
            optimizer=optimizer,
            loss=lambda _, batch: cast("Tensor", root(batch)),  # in evaluation, too, the root gathers what it owns
            forward=root,
            no_sync=no_sync,
            averaged=1,
            precision=precision,
            clip=clip,
            world=world,
            gradients_of=local_gradients,
            norm_of=lambda gradients: whole_norm(gradients, shard_group, world.device),
            found_anywhere=lambda found: found_by_any(found, shard_group, world.device),
        )

    def forward_backward(self, batches: StepBatches) -> StepLoss:
        """Forward and backward every round; gradients end as this rank's part of the sum."""
        for buffer in self._buffers:
            dist.broadcast(buffer, src=0)
        return self._replica.forward_backward(batches)

    def update(self, *, measure: bool) -> Update:
        """Divide, clip by the norm of the whole gradient, step, clear."""
        return self._replica.update(measure=measure)

    def evaluate(self, micro_batches: Iterable[MicroBatch]) -> Iterator[MicroBatchLoss]:
        """The hook on the model; afterwards nothing stays gathered."""
        for buffer in self._buffers:
            dist.broadcast(buffer, src=0)
        try:
            yield from self._replica.evaluate(micro_batches)
        finally:
            self._free()

    def state(self) -> State:
        """Model and optimizer by the model's own names; tensors are this rank's shards."""
        self._free()
        return self._replica.state()

    def load_state(self, read: Callable[[State], None], stored: Mapping[str, StoredTensor]) -> None:
        """Continue from a checkpoint; every rank reads its own shards."""
        self._free()
        self._replica.load_state(read, stored)

    def _free(self) -> None:
        """Let the modules hold their shards again; without this, a forward leaves the root's parameters whole."""
        for unit in self._units:
            unit.reshard()


@torch.no_grad()
def local_gradients(parameters: Sequence[Parameter]) -> list[Tensor]:
    """This rank's rows of each gradient, in place. Plain tensors: DTensor's dispatch costs more than the arithmetic."""
    return [cast("DTensor", parameter.grad).to_local() for parameter in parameters if parameter.grad is not None]


@torch.no_grad()
def whole_norm(gradients: list[Tensor], group: dist.ProcessGroup, device: torch.device) -> Tensor:
    """The 2-norm over all shards. Collective over the group; the result lies where the gradients do."""
    own = get_total_norm(gradients)
    squared = own.square().to(device)
    dist.all_reduce(squared, group=group)
    return squared.sqrt().to(own.device)


def found_by_any(found: Tensor, group: dist.ProcessGroup, device: torch.device) -> Tensor:
    """The largest over all shards. Collective over the group."""
    there = found.to(device)
    dist.all_reduce(there, op=dist.ReduceOp.MAX, group=group)
    return there


def buffers_of(model: Module) -> list[Tensor]:
    """Each once."""
    return list(model.buffers())
