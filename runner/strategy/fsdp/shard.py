"""A model cut among ranks by torch's fully_shard: Zhao et al. (VLDB 2023), Zhang et al. (MLSys 2022) for two axes."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

import torch
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.nn import Module

from runner.errors import ModelError
from runner.strategy.fsdp.units import Units


@dataclass(frozen=True, kw_only=True)
class ShardingPlan:
    """How each unit is cut and gathered."""

    mesh: DeviceMesh
    free_after_forward: bool
    """Units give up their gathered parameters between forward and backward."""
    param_dtype: torch.dtype | None
    """In which type parameters are gathered; None = as they are stored."""
    reduce_dtype: torch.dtype
    offload: OffloadPolicy
    unused_parameters: bool
    """Parameters without a gradient on this rank take part in the exchange, as zeros."""


def shard(root: Module, units: Units, plan: ShardingPlan) -> list[FSDPModule]:
    """Shard the model in place, innermost units first; what is in no unit belongs to the root.

    Gradients are summed over ranks, not averaged: the step divides once, by its count.

    Returns:
        The units, the root first, then as the model holds them.
    """
    _check_can_be_cut(root)
    for group in units.groups:
        _fully_shard(group, units, plan, owners=set(group), is_root=False)
    _fully_shard([root], units, plan, owners={None}, is_root=True)
    sharded: list[FSDPModule] = [module for module in root.modules() if isinstance(module, FSDPModule)]
    for unit in sharded:
        unit.set_gradient_divide_factor(1.0)
        unit.set_force_sum_reduction_for_comms(True)  # else the factor is a reduction that only nccl has
        unit.set_reduce_scatter_unused_params(plan.unused_parameters, recurse=False)
    return sharded


def _fully_shard(
    group: list[Module], units: Units, plan: ShardingPlan, *, owners: set[Module | None], is_root: bool
) -> None:
    """The root is needed again as soon as backward begins: it is not freed between. Nor are its inputs cast: they are
    the batch.
    """
    policy = MixedPrecisionPolicy(
        param_dtype=plan.param_dtype,
        reduce_dtype=plan.reduce_dtype,
        cast_forward_inputs=plan.param_dtype is not None and not is_root,
    )
    fully_shard(
        group if len(group) > 1 else cast("list[Module]", group[0]),
        mesh=plan.mesh,
        reshard_after_forward=plan.free_after_forward and not is_root,
        mp_policy=policy,
        offload_policy=plan.offload,
        ignored_params={parameter for parameter, owner in units.owner_of_shared.items() if owner not in owners},
    )


def _check_can_be_cut(root: Module) -> None:
    scalars = [name.removeprefix("model.") for name, parameter in root.named_parameters() if parameter.ndim == 0]
    if scalars:
        rule = "Give each the shape [1], or use strategy=ddp."
        raise ModelError(f"the model has parameters without a dimension, which cannot be cut: {scalars}. {rule}")
    types = {parameter.dtype for parameter in root.parameters() if parameter.requires_grad}
    if len(types) > 1:
        rule = "Gradients of one unit travel together: let the model hook return trained parameters of one type."
        raise ModelError(f"the model's trained parameters are of several types: {sorted(map(str, types))}. {rule}")


def prefetch(units: Sequence[FSDPModule], *, forward: int, backward: int) -> None:
    """Gather units ahead of time, in the order in which the model holds them.

    Args:
        forward: units ahead; 0 = each when it is reached.
        backward: units ahead; 1 = fully_shard's own, by the order in which they ran; 0 = each when it is reached.
    """
    for at, unit in enumerate(units):
        if forward:
            unit.set_modules_to_forward_prefetch(list(units[at + 1 : at + 1 + forward]))
        if backward != 1:
            behind = list(units[max(at - backward, 0) : at][::-1])
            # An empty list would mean the default of one unit ahead; a unit that is there already is not fetched again.
            unit.set_modules_to_backward_prefetch(behind or [unit])


@contextmanager
def gradients_held(units: Sequence[FSDPModule], *, keep_gathered: bool) -> Iterator[None]:
    """Backward sums whole gradients on this rank and exchanges nothing.

    Args:
        keep_gathered: the units keep their parameters for the next round: no gathering, and no memory given back.
    """
    for unit in units:
        unit.set_requires_gradient_sync(False, recurse=False)
        unit.set_reshard_after_backward(not keep_gathered, recurse=False)
    yield
    for unit in units:
        unit.set_requires_gradient_sync(True, recurse=False)
        unit.set_reshard_after_backward(True, recurse=False)


@contextmanager
def replicas_held(units: Sequence[FSDPModule]) -> Iterator[None]:
    """Backward sums gradients inside each shard group, and not yet over its replicas."""
    for unit in units:
        unit.set_requires_all_reduce(False, recurse=False)
    yield
    for unit in units:
        unit.set_requires_all_reduce(True, recurse=False)
