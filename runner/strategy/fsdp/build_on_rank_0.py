"""A model that only rank 0 builds with values: its outline on the other ranks, and the shards that they are sent."""

from collections.abc import Callable, Mapping

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.nn import Module

from runner.errors import ModelError
from runner.protocols import Axis, World


def outline(build_model: Callable[[], Module]) -> Module:
    """The model without values, on torch's meta device: for a rank that will be sent its shards.

    Raises:
        ModelError: the model keeps tensors of which nobody could be sent the values.
    """
    with torch.device("meta"):
        model = build_model()
    for name, module in model.named_modules():
        unregistered = [key for key, value in vars(module).items() if isinstance(value, Tensor)]
        if unregistered:
            rule = "Register it as a buffer, or use strategy.build=every_rank."
            raise ModelError(
                f"with strategy.build=rank_0 the other ranks get parameters and buffers only, but "
                f"{'.'.join(filter(None, (name, unregistered[0])))} is a tensor that is neither. {rule}"
            )
    return model


def whole_tensors(model: Module) -> dict[str, Tensor]:
    """What rank 0 sends: taken before the model is cut, and kept by nobody afterwards."""
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def send_shards(
    model: Module, whole: Mapping[str, Tensor], *, shard_group: dist.ProcessGroup, world: World, offloaded: bool
) -> None:
    """Fill the outlines on all ranks but the first. Collective; no rank but the first ever holds a whole parameter.

    Args:
        model: already sharded.
        whole: every parameter by name, on rank 0; not read on the others.
        shard_group: the ranks that hold one copy of the model between them.
        world: all ranks.
        offloaded: shards live on the host.
    """
    if not world.is_main:
        model.to_empty(device="cpu" if offloaded else world.device)
    for name, parameter in model.named_parameters():
        assert isinstance(parameter, DTensor), name
        _send(parameter, whole.get(name), shard_group, world)
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            there = buffer.to(world.device)
            world.broadcast(there)
            module.register_buffer(name, there, persistent=name not in module._non_persistent_buffers_set)


@torch.no_grad()
def _send(parameter: DTensor, whole: Tensor | None, shard_group: dist.ProcessGroup, world: World) -> None:
    """One parameter: scattered in the shard group of rank 0, then broadcast to the other replicas."""
    local = parameter.to_local()
    shard, replicate = world.along(Axis.SHARD), world.along(Axis.REPLICATE)
    rows = -(-parameter.shape[0] // shard.size)
    room = torch.empty((rows, *parameter.shape[1:]), dtype=parameter.dtype, device=world.device)
    if replicate.is_main:
        parts = None
        if whole is not None:
            parts = [_padded(whole, at * rows, rows, world.device) for at in range(shard.size)]
        dist.scatter(room, parts, group=shard_group, group_src=0)
    replicate.broadcast(room)
    local.copy_(room[: len(local)])


def _padded(whole: Tensor, first: int, rows: int, device: torch.device) -> Tensor:
    """Rows of a tensor; what lies beyond its end is zeros, since a scatter sends equal parts."""
    part = whole[first : first + rows]
    room = torch.zeros((rows, *whole.shape[1:]), dtype=whole.dtype, device=device)
    room[: len(part)] = part
    return room
