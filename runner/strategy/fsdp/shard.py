"""Shards a model with torch's fully_shard: Zhao et al. (VLDB 2023), Zhang et al. (MLSys 2022) for two axes."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import NamedTuple, cast

import torch
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import Shard
from torch.nn import Module, Parameter

from runner.errors import ModelError
from runner.strategy.fsdp.units import Units


class Apart(NamedTuple):
    """How a module is sharded that is a unit of its own because the ranks that share its parameters are others."""

    mesh: DeviceMesh
    placement: Callable[[Parameter], Shard]
    """The dimension of each parameter that is divided among them."""


@dataclass(frozen=True, kw_only=True)
class ShardingPlan:
    """How each unit is sharded and gathered."""

    mesh: DeviceMesh
    free_after_forward: bool
    """Units free their gathered parameters between forward and backward."""
    param_dtype: torch.dtype | None
    """The dtype in which parameters are gathered; None = the dtype they are stored in."""
    reduce_dtype: torch.dtype
    offload: OffloadPolicy
    unused_parameters: bool
    """Whether parameters without a gradient on this rank are reduced as zeros."""
    placement: Callable[[Parameter], Shard] | None = None
    """The dimension of each parameter that is divided; None = the first."""


def shard(
    root: Module, units: Units, plan: ShardingPlan, *, roots: Sequence[Module], apart: Mapping[Module, Apart]
) -> list[FSDPModule]:
    """Shard the model in place, innermost units first; parameters outside all units belong to a root.

    Gradients are summed over ranks, not averaged: the step divides once, by its count.

    Args:
        root: what is called: the loss hook and what it calls.
        roots: the outermost units: this module, or several models, which hooks of other models call, too.
        apart: modules that are units of their own, on other meshes.

    Returns:
        The units in the model's order of modules: the root, if it is one, first.
    """
    _check_can_be_sharded(root)
    whole: set[Parameter] = set()
    for module, (mesh, placement) in apart.items():
        if mesh.size() == 1 and not isinstance(plan.offload, CPUOffloadPolicy):
            # A unit of one rank would copy its parameters for each forward and each backward, to no purpose.
            whole |= set(module.to(mesh.device_type).parameters())
            continue
        own = replace(plan, mesh=mesh, placement=placement)
        _fully_shard([module], units, own, owners={module}, is_root=False, whole=whole)
    for group in units.groups:
        if group := [module for module in group if module not in apart and module not in roots]:
            _fully_shard(group, units, plan, owners=set(group), is_root=False, whole=whole)
    for module in roots:
        _fully_shard([module], units, plan, owners={None}, is_root=module is root, whole=whole)
    sharded: list[FSDPModule] = [module for module in root.modules() if isinstance(module, FSDPModule)]
    for unit in sharded:
        unit.set_gradient_divide_factor(1.0)
        unit.set_force_sum_reduction_for_comms(True)  # otherwise the factor needs a reduction that only nccl has
        unit.set_reduce_scatter_unused_params(plan.unused_parameters, recurse=False)
    return sharded


def _fully_shard(
    group: list[Module],
    units: Units,
    plan: ShardingPlan,
    *,
    owners: set[Module | None],
    is_root: bool,
    whole: set[Parameter],
) -> None:
    """Shard a group of modules as one unit. The root is not freed after its forward, since backward needs it at once,
    and its inputs, the batch, are not cast.

    Args:
        owners: those of the shared parameters that belong to this unit.
        whole: parameters that are not sharded.
    """
    shared = {parameter for parameter, owner in units.owner_of_shared.items() if owner not in owners}
    policy = MixedPrecisionPolicy(
        param_dtype=plan.param_dtype,
        reduce_dtype=plan.reduce_dtype,
        cast_forward_inputs=plan.param_dtype is not None and not is_root,
    )
    fully_shard(
        group if len(group) > 1 else cast("list[Module]", group[0]),
        mesh=plan.mesh,
        shard_placement_fn=plan.placement,
        reshard_after_forward=plan.free_after_forward and not is_root,
        mp_policy=policy,
        offload_policy=plan.offload,
        ignored_params=shared | whole,
    )


def _check_can_be_sharded(root: Module) -> None:
    scalars = [name.removeprefix("model.") for name, parameter in root.named_parameters() if parameter.ndim == 0]
    if scalars:
        rule = "Give each the shape [1], or use strategy=ddp."
        raise ModelError(f"the model has parameters without a dimension, which cannot be sharded: {scalars}. {rule}")
    types = {parameter.dtype for parameter in root.parameters() if parameter.requires_grad}
    if len(types) > 1:
        rule = "A unit's gradients are reduced together: let the model hook return trained parameters of one dtype."
        raise ModelError(f"the model's trained parameters have several dtypes: {sorted(map(str, types))}. {rule}")


def prefetch(units: Sequence[FSDPModule], *, forward: int, backward: int) -> None:
    """Gather units ahead of time, in the model's order of modules.

    Args:
        forward: units ahead; 0 = each when it is reached.
        backward: units ahead; 1 = fully_shard's default, in reverse order of the forward; 0 = each when it is reached.
    """
    for at, unit in enumerate(units):
        if forward:
            unit.set_modules_to_forward_prefetch(list(units[at + 1 : at + 1 + forward]))
        if backward != 1:
            behind = list(units[max(at - backward, 0) : at][::-1])
            # An empty list would mean the default of one unit ahead; a unit that is gathered is not gathered again.
            unit.set_modules_to_backward_prefetch(behind or [unit])


@contextmanager
def no_gradient_sync(units: Sequence[FSDPModule], *, keep_gathered: bool) -> Iterator[None]:
    """Let backward accumulate unsharded gradients on this rank, without communication.

    Args:
        keep_gathered: units keep gathered parameters for the next micro-batch: no all-gather, but more memory.
    """
    for unit in units:
        unit.set_requires_gradient_sync(False, recurse=False)
        unit.set_reshard_after_backward(not keep_gathered, recurse=False)
    yield
    for unit in units:
        unit.set_requires_gradient_sync(True, recurse=False)
        unit.set_reshard_after_backward(True, recurse=False)


@contextmanager
def no_all_reduce(units: Sequence[FSDPModule]) -> Iterator[None]:
    """Let backward reduce gradients inside each shard group, but not yet across replicas."""
    for unit in units:
        unit.set_requires_all_reduce(False, recurse=False)
    yield
    for unit in units:
        unit.set_requires_all_reduce(True, recurse=False)
