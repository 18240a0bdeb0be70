"""Distributed data parallel: Li et al. (VLDB 2020), as torch.nn.parallel has it."""

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, final

import torch
from torch import Tensor
from torch.nn import Module, Parameter
from torch.nn.parallel import DistributedDataParallel

from runner.errors import Fault
from runner.protocols import Axes, Clip, Loss, Precision, Trainable, World
from runner.strategy.loss_of import LossOf
from runner.strategy.replica import Replica

if TYPE_CHECKING:
    from runner.spec.run_spec import RunSpec


@final
@dataclass(frozen=True, kw_only=True)
class DDP:
    """The model on every rank; gradients are summed over ranks while the backward still runs."""

    bucket_mib: float = 25.0
    """MiB of gradients that travel together."""
    sync_buffers: bool = True
    """Before each forward, give every rank the buffers of rank 0."""
    find_unused_parameters: bool = False
    """Look, after each forward, for parameters that took no part; needed if some never do."""
    static_graph: bool = False
    """The same parameters take part in every step: lets DDP order buckets once."""
    gradient_as_bucket_view: bool = True
    """Let gradients live inside the buckets: saves one copy of them."""

    def __post_init__(self) -> None:
        if not self.bucket_mib > 0:
            raise ValueError(f"bucket_mib={self.bucket_mib} must be positive.")

    def check(self, spec: "RunSpec") -> Iterable[Fault]:
        """Goes with any number of processes, one included."""
        return ()

    def axes(self, num_ranks: int) -> Axes:
        """One axis of replicas."""
        return Axes(names=("replicate",), sizes=(num_ranks,), data=("replicate",))

    def prepare(
        self,
        *,
        build_model: Callable[[], Module],
        build_optimizer: Callable[[Iterable[tuple[str, Parameter]]], torch.optim.Optimizer],
        loss: Callable[[Module, Any], Loss | Tensor],
        precision: Precision,
        clip: Clip,
        world: World,
    ) -> Trainable:
        """What DDP wraps is the loss of the model, so that hooks always meet the user's own module."""
        model = build_model().to(world.device)
        optimizer = build_optimizer(model.named_parameters())
        prepared = partial(
            Replica, model=model, optimizer=optimizer, loss=loss, precision=precision, clip=clip, world=world
        )
        if world.size == 1:
            return prepared(forward=partial(loss, model), hold_back=nullcontext, averaged=1)
        wrapped = DistributedDataParallel(
            LossOf(model, loss),
            bucket_cap_mb=self.bucket_mib,
            forward_sync_buffers=self.sync_buffers,
            find_unused_parameters=self.find_unused_parameters,
            static_graph=self.static_graph,
            gradient_as_bucket_view=self.gradient_as_bucket_view,
        )
        return prepared(forward=wrapped, hold_back=wrapped.no_sync, averaged=world.size)
