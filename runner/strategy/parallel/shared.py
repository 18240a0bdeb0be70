"""Parameters that several stages of a pipeline have, such as an embedding that is the head's weight as well."""

from collections.abc import Mapping
from typing import final

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import Module, Parameter

from runner.protocols import Axis, World
from runner.strategy.parallel.tensor import parts_of_gradients


@final
class SharedParameters:
    """The parameters of this rank that other ranks of its pipeline have as well; all of them take the same steps."""

    def __init__(self, model: Module, ranks_of: Mapping[str, tuple[int, ...]], world: World) -> None:
        """Find who shares what. Collective over the ranks of a pipeline.

        Args:
            model: the modules of this rank.
            ranks_of: the pipeline ranks that have each parameter of the whole model, by name.
            world: all ranks of the run.
        """
        pipeline = world.along(Axis.PIPELINE)
        mine = next(ranks for ranks in world.axes.groups([Axis.PIPELINE]) if world.rank in ranks)
        parameters = dict(model.named_parameters())
        self.holders = {id(parameters[name]): len(ranks) for name, ranks in ranks_of.items() if name in parameters}
        self._groups: list[tuple[dist.ProcessGroup, list[Parameter]]] = []
        for ranks in sorted({ranks for ranks in ranks_of.values() if len(ranks) > 1}):
            if pipeline.rank in ranks:
                members = [mine[rank] for rank in ranks]
                group = dist.new_group(members, use_local_synchronization=True)
                trained = [
                    parameters[name]
                    for name, its in ranks_of.items()
                    if its == ranks and parameters[name].requires_grad
                ]
                self._groups.append((group, trained))

    def copies(self, parameter: Tensor) -> int:
        """The number of ranks of a pipeline that have this parameter."""
        return self.holders.get(id(parameter), 1)

    @torch.no_grad()
    def sum_gradients(self) -> None:
        """Sum the gradients that the stages have left, in place. Collective."""
        for group, parameters in self._groups:
            for parameter in parameters:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
            # Sums that tensor ranks have left open may be others on other stages.
            for gradient in parts_of_gradients(parameters):
                dist.all_reduce(gradient, group=group)
