"""This rank's part of a tensor that is divided among ranks, as a plain tensor, and back.

As DTensor's `to_local` and `from_local`, but the memory of parts and of their gradients is contiguous, as DTensor
believes it to be: it takes the strides of the whole from those of a part, which is wrong where lengths do not divide.
"""

from collections.abc import Callable
from copy import copy
from functools import lru_cache
from typing import Any, cast

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard
from torch.distributed.tensor._dtensor_spec import DTensorSpec, TensorMeta
from torch.distributed.tensor.placement_types import _StridedShard

from runner.strategy.parallel.balance import in_order


def part_of(whole: DTensor) -> Tensor:
    """This rank's part of a tensor that is divided along one dimension."""
    return cast("Tensor", _PartOf.apply(whole))  # type: ignore[no-untyped-call]


def of_part(part: Tensor, mesh: DeviceMesh, *, dim: int, length: int) -> DTensor:
    """The whole tensor, given this rank's part of it along a dimension of this length."""
    return cast("DTensor", _OfPart.apply(part, mesh, Shard(dim), length))  # type: ignore[no-untyped-call]


def replicated(tensor: Tensor, mesh: DeviceMesh) -> DTensor:
    """A tensor that every rank has; the gradient of each rank is a summand."""
    if isinstance(tensor, DTensor):
        return tensor
    return cast("DTensor", _Replicated.apply(tensor, mesh))  # type: ignore[no-untyped-call]


def summed(tensor: DTensor) -> DTensor:
    """A tensor of which each rank has a summand, as one that every rank has. Collective."""
    return cast("DTensor", _Summed.apply(tensor))  # type: ignore[no-untyped-call]


def gathered(whole: DTensor) -> Tensor:
    """All of a tensor, on every rank; their gradients are summed. Collective."""
    return cast("Tensor", _Gathered.apply(whole))  # type: ignore[no-untyped-call]


def on_own_tokens(compute: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A function of tokens that treats each by itself, such that each rank computes it of its own tokens.

    Args:
        compute: from tensors of which each begins with the tokens, to one that does.
    """

    def function(tokens: Tensor, *others: Tensor) -> Tensor:
        if not isinstance(tokens, DTensor):
            return compute(tokens, *others)
        # Sequences are divided by length: in what is flattened from [items, length], a rank has a part of each item.
        placement, mesh = tokens.placements[0], tokens.device_mesh
        if not isinstance(placement, Shard | _StridedShard) or placement.dim:
            placement = Shard(0)
        own = [part_of(replicated(one, mesh).redistribute(mesh, [placement])) for one in (tokens, *others)]
        return cast("DTensor", _OfPart.apply(compute(*own), mesh, placement, len(tokens)))  # type: ignore[no-untyped-call]

    return function


class _PartOf(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, whole: DTensor) -> Tensor:
        ctx.placement = cast("Shard", whole.placements[0])
        ctx.mesh, ctx.length = whole.device_mesh, whole.shape[ctx.placement.dim]
        part = whole.to_local()
        return part.view_as(part)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> DTensor:
        return as_whole(gradient, ctx.mesh, ctx.placement, ctx.length)


class _OfPart(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, part: Tensor, mesh: DeviceMesh, placement: Shard, length: int) -> DTensor:
        ctx.mesh, ctx.placement = mesh, placement
        return as_whole(part, mesh, placement, length)

    @staticmethod
    def backward(ctx: Any, gradient: DTensor) -> tuple[Tensor, None, None, None]:
        return divided(gradient, ctx.placement).to_local().contiguous(), None, None, None


class _Replicated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, mesh: DeviceMesh) -> DTensor:
        return DTensor.from_local(tensor.detach(), mesh, [Replicate()], run_check=False)

    @staticmethod
    def backward(ctx: Any, gradient: DTensor) -> tuple[Tensor, None]:
        return _summand(gradient), None


class _Gathered(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, whole: DTensor) -> Tensor:
        ctx.mesh, ctx.placement = whole.device_mesh, whole.placements[0]
        tensor = whole.redistribute(ctx.mesh, [Replicate()]).to_local()
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> DTensor:
        summands = DTensor.from_local(gradient.contiguous(), ctx.mesh, [Partial()], run_check=False)
        summed = summands.redistribute(ctx.mesh, [ctx.placement])
        if ctx.placement.is_replicate():
            return summed
        return as_whole(summed.to_local(), ctx.mesh, ctx.placement, gradient.shape[ctx.placement.dim])


class _Summed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: DTensor) -> DTensor:
        return tensor.redistribute(tensor.device_mesh, [Replicate()])

    @staticmethod
    def backward(ctx: Any, gradient: DTensor) -> DTensor:
        return gradient.redistribute(gradient.device_mesh, [Replicate()])


def _summand(gradient: DTensor) -> Tensor:
    """This rank's of the tensors whose sum over ranks is the gradient."""
    mesh, placement = gradient.device_mesh, gradient.placements[0]
    if placement == Partial():
        return gradient.to_local()
    if type(placement) is not Shard:
        return gradient.redistribute(mesh, [Replicate()]).to_local() / mesh.size()
    dim = placement.dim
    mine = in_order(gradient.shape[dim], mesh.size(), mesh.get_local_rank())
    part = gradient.to_local()
    summand = part.new_zeros(gradient.shape)
    summand.narrow(dim, mine.start, len(mine)).copy_(part)
    return summand


def divided(whole: DTensor, placement: Shard) -> DTensor:
    """The same, redistributed where that is needed. Collective."""
    # A graph is traced with gradients that are divided as the output is, but may get others.
    if whole.placements[0] == placement and not torch.compiler.is_compiling():
        return whole
    return whole.redistribute(whole.device_mesh, [placement])


def as_whole(part: Tensor, mesh: DeviceMesh, placement: Shard, length: int) -> DTensor:
    """As `of_part`, outside of autograd."""
    dim, own = placement.dim, part.shape
    shape = torch.Size((*own[:dim], length, *own[dim + 1 :]))
    part = part.detach().contiguous()
    if torch.compiler.is_compiling():  # the constructor cannot be compiled
        strides = _strides(shape)
        return DTensor.from_local(part, mesh, [placement], run_check=False, shape=shape, stride=strides)
    # from_local does the same with a node in the graph, in four times the time.
    spec = copy(_spec(mesh, placement, shape, part.dtype))  # DTensor may write into it
    return DTensor.__new__(DTensor, part, spec, requires_grad=False)  # __init__ does nothing, for 5 µs


@lru_cache(maxsize=256)
def _spec(mesh: DeviceMesh, placement: Shard, shape: torch.Size, dtype: torch.dtype) -> DTensorSpec:
    meta = TensorMeta(shape=shape, stride=_strides(shape), dtype=dtype)
    return DTensorSpec(mesh, (placement,), tensor_meta=meta)


def _strides(shape: torch.Size) -> tuple[int, ...]:
    return torch.empty(shape, device="meta").stride()
