"""Attention over divided sequences, in which each rank has all positions of some of the heads: Jacobs et al. (2023).

Between layers a rank has a part of the positions, and all heads. One exchange among the ranks brings it all positions
of queries, keys and values for some of the heads, and another one sends back what attention has made of them. So each
rank computes what one process computes of these heads, under any mask, and all ranks have the same work.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributed import all_to_all_single
from torch.distributed._functional_collectives import all_to_all_single as functional_all_to_all
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard

from runner.strategy.parallel.balance import in_order
from runner.strategy.parallel.parts import as_whole, divided, gathered, replicated

HEADS, LENGTH = 1, 2
"""Dimensions of [items, heads, length, features]."""
scaled_dot_product_attention = F.scaled_dot_product_attention


def can_divide_heads(tensors: Sequence[DTensor]) -> bool:
    """Whether each rank can have equally many heads of each."""
    return all(one.shape[HEADS] % one.device_mesh.size() == 0 for one in tensors)


def attention_by_heads(
    query: DTensor, key: DTensor, value: DTensor, mask: Tensor | None, options: dict[str, Any]
) -> DTensor:
    """Attention over sequences that are divided by length: [items, heads, length, features]. Collective.

    Args:
        query: as are key and value, of the same length, but they may have fewer heads.
        mask: as in `scaled_dot_product_attention`; may be a DTensor.
        options: the other arguments of that function.
    """
    mesh, length = query.device_mesh, query.shape[LENGTH]
    whole: tuple[Tensor, Tensor, Tensor] = _ToHeads.apply(query, key, value)  # type: ignore[no-untyped-call]
    if mask is not None:
        mask = _of_own_heads(gathered(replicated(mask, mesh)), mesh)
    mixed = scaled_dot_product_attention(*whole, mask, **options)
    return cast("DTensor", _ToPositions.apply(mixed, mesh, length))  # type: ignore[no-untyped-call]


def _of_own_heads(mask: Tensor, mesh: DeviceMesh) -> Tensor:
    """A mask that differs by head, for the heads of this rank."""
    if mask.ndim <= HEADS + 1 or mask.shape[-3] == 1:
        return mask
    num_own = mask.shape[-3] // mesh.size()
    return mask.narrow(-3, mesh.get_local_rank() * num_own, num_own)


class _Ranks(NamedTuple):
    mesh: DeviceMesh
    lengths: list[int]
    """The positions that each has between layers."""
    own: int
    """Those of this rank."""


def _ranks(mesh: DeviceMesh, length: int) -> _Ranks:
    lengths = [len(in_order(length, mesh.size(), rank)) for rank in range(mesh.size())]
    return _Ranks(mesh, lengths, lengths[mesh.get_local_rank()])


class _ToHeads(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *parts: DTensor) -> tuple[Tensor, ...]:
        ctx.mesh, ctx.length = parts[0].device_mesh, parts[0].shape[LENGTH]
        return tuple(_to_heads([one.to_local() for one in parts], _ranks(ctx.mesh, ctx.length)))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[DTensor, ...]:
        parts = _to_positions(gradients, _ranks(ctx.mesh, ctx.length))
        return tuple(_divided(part, ctx.mesh, ctx.length) for part in parts)


class _ToPositions(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, mixed: Tensor, mesh: DeviceMesh, length: int) -> DTensor:
        ctx.mesh, ctx.length = mesh, length
        return _divided(_to_positions([mixed], _ranks(mesh, length))[0], mesh, length)

    @staticmethod
    def backward(ctx: Any, gradient: DTensor) -> tuple[Tensor, None, None]:
        part = divided(gradient, Shard(LENGTH)).to_local()
        return _to_heads([part], _ranks(ctx.mesh, ctx.length))[0], None, None


def _divided(part: Tensor, mesh: DeviceMesh, length: int) -> DTensor:
    """[items, own positions, heads, features] as [items, heads, length, features]."""
    return cast("DTensor", as_whole(part, mesh, Shard(1), length).transpose(1, 2))


def _to_heads(parts: Sequence[Tensor], ranks: _Ranks) -> list[Tensor]:
    """[items, heads, own positions, features] of each, as [items, own heads, length, features]. Collective."""
    num_ranks = len(ranks.lengths)
    of_ranks = [torch.unflatten(one, HEADS, (num_ranks, one.shape[HEADS] // num_ranks)) for one in parts]
    rows = [one.permute(1, 3, 0, 2, 4).flatten(3) for one in of_ranks]  # [ranks, own positions, items, own heads × …]
    sent = torch.cat(rows, dim=3).flatten(0, 1).contiguous()
    received = _exchanged(sent, ranks.lengths, [ranks.own] * num_ranks, ranks.mesh)
    of_tensors = torch.split(received, [one.shape[3] for one in rows], dim=2)
    return [
        torch.unflatten(rows, 2, one.shape[2::2]).permute(1, 2, 0, 3)
        for rows, one in zip(of_tensors, of_ranks, strict=True)
    ]


def _to_positions(parts: Sequence[Tensor], ranks: _Ranks) -> list[Tensor]:
    """[items, own heads, length, features] of each, as [items, own positions, heads, features]. Collective."""
    num_ranks = len(ranks.lengths)
    rows = [one.permute(2, 0, 1, 3).flatten(2) for one in parts]  # [length, items, own heads × features]
    sent = torch.cat(rows, dim=2).contiguous()
    received = _exchanged(sent, [ranks.own] * num_ranks, ranks.lengths, ranks.mesh)
    of_ranks = torch.unflatten(received, 0, (num_ranks, ranks.own))
    of_tensors = torch.split(of_ranks, [one.shape[2] for one in rows], dim=3)
    return [
        torch.unflatten(rows, 3, one.shape[1::2]).permute(2, 1, 0, 3, 4).flatten(2, 3)
        for rows, one in zip(of_tensors, parts, strict=True)
    ]


def _exchanged(sent: Tensor, receives: list[int], sends: list[int], mesh: DeviceMesh) -> Tensor:
    """What the ranks have sent to this one, given how many rows each sends and gets. Collective."""
    if torch.compiler.is_compiling():  # a graph cannot hold a process group
        return functional_all_to_all(sent, receives, sends, mesh)
    received = sent.new_empty(sum(receives), *sent.shape[1:])
    all_to_all_single(received, sent, receives, sends, mesh.get_group())
    return received
