"""One process, one copy of the model: the reference that every other strategy is measured against."""

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, final

import torch
from torch import Tensor
from torch.nn import Module, Parameter

from runner.errors import Fault
from runner.protocols import Axes, Clip, Loss, Precision, Trainable, World
from runner.strategy.common.module_trainable import ModuleTrainable

if TYPE_CHECKING:
    from runner.config.run_spec import RunSpec


@final
@dataclass(frozen=True, kw_only=True)
class Single:
    """The plain module on one device."""

    def check(self, spec: "RunSpec") -> Iterable[Fault]:
        """One process only."""
        if spec.world_size > 1:
            asked = f"hardware.processes={spec.hardware.processes}"
            if spec.launch.nodes > 1:
                asked += f" on launch.nodes={spec.launch.nodes}"
            rule = f"single runs one process, but {asked} was asked for. Use strategy=ddp, or one process."
            yield Fault(key="strategy", message=rule)

    def axes(self, num_ranks: int) -> Axes:
        """One axis, whatever `check` says about its length."""
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
        """The model on the device, its optimizer, and nothing between them."""
        model = build_model().to(world.device)
        return ModuleTrainable(
            model=model,
            optimizer=build_optimizer(model.named_parameters()),
            loss=loss,
            forward=partial(loss, model),
            no_sync=nullcontext,
            averaged=1,
            precision=precision,
            clip=clip,
            world=world,
        )
