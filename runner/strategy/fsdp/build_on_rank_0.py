"""Builds a model with weights on rank 0 only; the other ranks build it on the meta device and receive their shards."""

from collections.abc import Callable, Mapping

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.nn import Module

from runner.errors import ModelError
from runner.protocols import Axis, World


def build_on_meta(build_model: Callable[[], Module]) -> Module:
    """Build the model without storage, on torch's meta device, for a rank that will receive its shards.

    Raises:
        ModelError: a module holds a tensor that is neither a parameter nor a buffer.
    """
    with torch.device("meta"):
        model = build_model()
    for name, module in model.named_modules():
        unregistered = [key for key, value in vars(module).items() if isinstance(value, Tensor)]
        if unregistered:
            rule = "Register it as a buffer, or use strategy.build=every_rank."
            raise ModelError(
                f"with strategy.build=rank_0 other ranks receive parameters and buffers only, but "
                f"{'.'.join(filter(None, (name, unregistered[0])))} is a tensor that is neither. {rule}"
            )
    return model


def full_tensors(model: Module) -> dict[str, Tensor]:
    """The parameters that rank 0 sends, by name. Call it before sharding, and drop the result once it is sent."""
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def send_shards(
    model: Module, full: Mapping[str, Tensor], *, shard_group: dist.ProcessGroup, world: World, offloaded: bool
) -> None:
    """Send the weights of rank 0 to the other ranks. Collective; no rank but rank 0 ever holds a full parameter.

    Args:
        model: already sharded.
        full: every unsharded parameter by name, on rank 0; ignored on the others.
        shard_group: the ranks that share one copy of the model.
        world: all ranks.
        offloaded: shards are kept in host memory.
    """
    if not world.is_main:
        model.to_empty(device="cpu" if offloaded else world.device)
    for name, parameter in model.named_parameters():
        assert isinstance(parameter, DTensor), name
        _send(parameter, full.get(name), shard_group, world)
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            on_device = buffer.to(world.device)
            world.broadcast(on_device)
            module.register_buffer(name, on_device, persistent=name not in module._non_persistent_buffers_set)


@torch.no_grad()
def _send(parameter: DTensor, full: Tensor | None, shard_group: dist.ProcessGroup, world: World) -> None:
    """Scatter one parameter in the shard group of rank 0, then broadcast the shards to the other replicas."""
    local = parameter.to_local()
    shard, replicate = world.along(Axis.SHARD), world.along(Axis.REPLICATE)
    rows = -(-parameter.shape[0] // shard.size)
    shard_rows = torch.empty((rows, *parameter.shape[1:]), dtype=parameter.dtype, device=world.device)
    if replicate.is_main:
        parts = None
        if full is not None:
            parts = [_padded(full, at * rows, rows, world.device) for at in range(shard.size)]
        dist.scatter(shard_rows, parts, group=shard_group, group_src=0)
    replicate.broadcast(shard_rows)
    local.copy_(shard_rows[: len(local)])


def _padded(tensor: Tensor, first: int, rows: int, device: torch.device) -> Tensor:
    """Rows [first, first + rows) of a tensor, padded with zeros past its end: a scatter sends equal parts."""
    part = tensor[first : first + rows]
    padded = torch.zeros((rows, *tensor.shape[1:]), dtype=tensor.dtype, device=device)
    padded[: len(part)] = part
    return padded
