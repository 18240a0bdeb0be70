"""Expert parallelism (GShard, arXiv:2006.16668): ranks hold different experts, and tokens are sent to them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast, final

import torch
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.distributed._functional_collectives import all_to_all_single, all_to_all_single_autograd
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard
from torch.nn import Module

from runner.model.experts import Groups
from runner.protocols import Axis
from runner.strategy.fsdp.shard import Apart
from runner.strategy.parallel.expert_modules import StackedExperts, expert_modules
from runner.strategy.parallel.sizes import SHARERS, SHARERS_OF_EXPERTS
from runner.strategy.parallel.tensor import split_parameters

Compute = Callable[[Tensor, Tensor, Tensor], Tensor]
"""The forward of experts: tokens, the experts of each, their weights."""


@final
class ExpertPlan:
    """Which modules of a model are experts, and how they are divided among ranks."""

    def __init__(self, patterns: Sequence[str], mesh: DeviceMesh) -> None:
        """Hold a plan.

        Args:
            patterns: of the names of modules; empty = those of `runner.model.experts`.
            mesh: all ranks of the run.
        """
        self._patterns = patterns
        self._mesh = mesh

    def apply(self, model: Module) -> None:
        """Divide the experts of each module in place. Without communication: every rank has the same weights.

        The plan has been checked by `expert_faults`.
        """
        mesh = self._mesh[Axis.EXPERT]
        for _, module in self._modules(model):
            for owner in module.modules():
                split_parameters(owner, mesh, weight=Shard(0), bias=Shard(0))
            experts = cast("StackedExperts", module)
            experts.num_experts //= mesh.size()
            module.forward = dispatched(module, module.forward, mesh.get_group())

    def apart(self, model: Module) -> Mapping[Module, Apart]:
        """The modules that are sharded by themselves: along `expert` they are divided already."""
        mesh = sharing_mesh(self._mesh, SHARERS_OF_EXPERTS)
        ranks = mesh.size(mesh.ndim - 1)
        own = Apart(mesh, lambda parameter: Shard(shard_dim(cast("DTensor", parameter).to_local().shape, ranks)))
        return {module: own for _, module in self._modules(model)}

    def _modules(self, model: Module) -> Iterator[tuple[str, Module]]:
        """The modules of experts that this rank has a part of: those of other stages of a pipeline have no weights."""
        found = expert_modules(model, self._patterns)
        return ((name, module) for name, module in found if any(True for _ in module.parameters()))


def sharing_mesh(mesh: DeviceMesh, sharers: Sequence[Axis] = SHARERS) -> DeviceMesh:
    """The ranks along the axes of sharers, after those that hold replicas if there are any.

    Ranks that hold different experts read different items, so they are shards like those along `shard`. Ranks that have
    different parts of a sequence have summands of the same gradients, so they share them as well.
    """
    names = [axis for axis in (Axis.REPLICATE, *sharers) if axis in (mesh.mesh_dim_names or ())]
    sharing = [axis for axis in names if axis in sharers]
    if len(sharing) == 1:
        return mesh[tuple(map(str, names))]
    shared = mesh[tuple(map(str, sharing))]._flatten("_".join(sharing))
    return DeviceMesh._concatenate([mesh[Axis.REPLICATE], shared]) if Axis.REPLICATE in names else shared


def shard_dim(shape: Sequence[int], ranks: int) -> int:
    """The first dimension of a rank's stacked weights that the shards divide; there is one, or `expert_faults` says so.

    The experts themselves come first. If each rank has fewer experts than there are shards, their outputs are next.
    """
    return next(dim for dim, size in enumerate(shape) if size % ranks == 0)


def dispatched(module: Module, compute: Compute, group: ProcessGroup) -> Compute:
    """A forward that sends each token to the ranks of its experts and returns their weighted outputs.

    Collective over the group, whose ranks have different tokens: each calls it, with any number of tokens or none.

    Args:
        module: holds this rank's experts, of which every rank has equally many, as DTensors.
        compute: its own forward.
        group: the ranks that hold the other experts.
    """
    ranks = group.size()

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # the sizes of what is sent depend on the data
    def forward(x: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        num_own = cast("StackedExperts", module).num_experts
        groups = Groups(chosen, num_experts=ranks * num_own)
        arriving = all_to_all_single(groups.counts, None, None, group)  # [ranks × own experts]
        # The host waits for these numbers, which all_to_all_single takes as lists.
        totals = torch.stack([groups.counts, arriving]).view(2, ranks, num_own).sum(dim=2)
        sent, received = totals.tolist()
        rows = all_to_all_single_autograd(x[groups.tokens], received, sent, group)
        own = (
            torch.arange(num_own, device=x.device).repeat(ranks).repeat_interleave(arriving, output_size=sum(received))
        )
        with _whole_parameters(module) as parameters:
            outputs = compute(rows, own.unsqueeze(1), torch.ones_like(own, dtype=weights.dtype).unsqueeze(1))
        if not any(received):
            outputs = _depends_on(outputs, [rows, *parameters])
        back = all_to_all_single_autograd(outputs, sent, received, group)
        return groups.combine(back, weights)

    return cast("Compute", forward)


@contextmanager
def _whole_parameters(module: Module) -> Iterator[list[Tensor]]:
    """Inside the block the parameters of the module are plain tensors: this rank's experts, with gradients."""
    places = [
        (owner, name, parameter)
        for owner in module.modules()
        for name, parameter in owner._parameters.items()
        if isinstance(parameter, DTensor)
    ]
    local = [cast("DTensor", parameter).to_local() for _, _, parameter in places]
    for (owner, name, _), part in zip(places, local, strict=True):
        owner._parameters[name] = cast("Any", part)
    try:
        yield local
    finally:
        for owner, name, parameter in places:
            owner._parameters[name] = parameter


def _depends_on(outputs: Tensor, inputs: Sequence[Tensor]) -> Tensor:
    """The same values, for experts with nothing to compute, whose inputs nevertheless have gradients: of zero.

    The backward of what was sent is collective, and so is the sum over ranks that completes a parameter's gradient.
    """
    nothing = [values.flatten()[:0].sum().to(outputs.dtype) for values in inputs]
    return outputs + torch.stack(nothing).sum()
