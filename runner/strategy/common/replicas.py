"""The ranks that hold copies of a model whose step is a graph: what they exchange before the graph, and in it."""

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor
from torch._C._distributed_c10d import _compute_bucket_assignment_by_size
from torch.distributed import ProcessGroup
from torch.distributed._functional_collectives import all_reduce
from torch.nn import Module, Parameter

from runner.errors import HookError
from runner.protocols import World

BYTES_PER_MIB = 1024**2


@final
class Replicas:
    """Sums gradients over ranks, in buckets."""

    def __init__(
        self,
        model: Module,
        parameters: Sequence[Parameter],
        world: World,
        group: ProcessGroup,
        *,
        bucket_mibs: Sequence[float],
        sync_buffers: bool,
    ) -> None:
        """Divide the gradients into buckets, those of the last parameters first.

        Args:
            model: of which every rank has a copy.
            parameters: those that are trained, in the order of the gradients.
            world: the ranks.
            group: the same ranks, for collectives inside a graph.
            bucket_mibs: MiB of gradients per all-reduce; the last number holds for all further buckets.
            sync_buffers: whether rank 0's buffers are broadcast before each step.
        """
        self._world = world
        self._group = group
        self._buffers = list(model.buffers()) if sync_buffers else []
        self._parameters = parameters
        limits = [int(BYTES_PER_MIB * mib) for mib in bucket_mibs]
        last = len(parameters) - 1
        backwards, _ = _compute_bucket_assignment_by_size(list(reversed(parameters)), limits)
        self._buckets = [[last - number for number in bucket] for bucket in backwards]

    def begin_step(self) -> None:
        """Broadcast buffers. Collective."""
        for buffer in self._buffers:
            self._world.broadcast(buffer)

    def sum(self, gradients: Sequence[Tensor | None]) -> list[Tensor]:
        """Traced: the sums over ranks; a gradient that this rank does not have counts as zeros. Collective."""
        summed: dict[int, Tensor] = {}
        for bucket in self._buckets:
            own = [self._gradient(number, gradients[number]) for number in bucket]
            flat = all_reduce(torch.cat([one.reshape(-1) for one in own]), "sum", self._group)
            parts = flat.split([one.numel() for one in own])
            summed |= {number: part.view_as(one) for number, part, one in zip(bucket, parts, own, strict=True)}
        return [summed[number] for number in range(len(gradients))]

    def sum_count(self, count: Tensor | int) -> Tensor:
        """Traced: the sum over ranks. Collective."""
        # float32 counts exactly up to 2^24, and beyond that as precisely as the gradients that it divides.
        found: Tensor = all_reduce(torch.zeros((), device=self._world.device) + count, "sum", self._group)
        return found

    def check_all_used(self, unused: str) -> None:
        """Raise HookError if the step left parameters without a gradient on this rank: others may have had one.

        Args:
            unused: the names of these parameters; empty if there are none.
        """
        if unused:
            raise HookError(
                f"the loss on rank {self._world.rank} does not depend on {unused}. With compile.what=step, every rank "
                "needs a gradient of every trained parameter in each step. Freeze what is not used, or use "
                "compile.what=model and strategy.find_unused_parameters=true."
            )

    def _gradient(self, number: int, gradient: Tensor | None) -> Tensor:
        return torch.zeros_like(self._parameters[number]) if gradient is None else gradient
