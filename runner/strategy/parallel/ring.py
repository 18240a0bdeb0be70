"""Attention over sequences that are divided among ranks: torch's ring attention (Liu et al. 2023) where it applies.

torch has ring attention for the kernels of CUDA devices. Here the kernel of the CPU joins them.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard
from torch.distributed.tensor.experimental._context_parallel import _attention as torch_ring
from torch.nn.attention import SDPBackend, sdpa_kernel

from runner.strategy.parallel.balance import exchange, in_order, to_balanced, to_order
from runner.strategy.parallel.by_heads import attention_by_heads, can_divide_heads
from runner.strategy.parallel.parts import divided, gathered, of_part, part_of, replicated

aten = torch.ops.aten
KERNELS = {
    kernel.value: kernel
    for kernel in (SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION)
}
"""Those that ring attention has, by the numbers by which torch chooses them."""
BATCHED = 4
"""Dimensions of what ring attention takes: [items, heads, length, features]."""


scaled_dot_product_attention = F.scaled_dot_product_attention
"""torch's own function, for which another one stands inside `ring_attention`."""


@contextmanager
def ring_attention(mesh: DeviceMesh) -> Iterator[None]:
    """Inside the block, `torch.nn.functional.scaled_dot_product_attention` also takes DTensors of this mesh."""

    def function(query: Tensor, key: Tensor, value: Tensor, *arguments: Any, **options: Any) -> Tensor:
        is_divided = any(isinstance(one, DTensor) and one.device_mesh == mesh for one in (query, key, value))
        if not is_divided:
            return scaled_dot_product_attention(query, key, value, *arguments, **options)
        with torch._C.DisableTorchFunction():  # what is called inside is meant as it stands
            mixed: Tensor = attention(mesh, query, key, value, *arguments, **options)
        return mixed

    options, dispatcher = torch_ring._cp_options, DTensor._op_dispatcher
    before, options.enable_load_balance = options.enable_load_balance, True
    torch_ring._enable_context_parallel_dispatcher()
    dispatcher._custom_op_handlers |= _ON_CPU
    F.scaled_dot_product_attention = function
    try:
        yield
    finally:
        F.scaled_dot_product_attention = scaled_dot_product_attention
        torch_ring._disable_context_parallel_dispatcher()
        options.enable_load_balance = before


# A compiled block breaks its graph here: which kernel takes the tensors is asked at run time.
@torch.compiler.disable  # type: ignore[untyped-decorator]
def attention(
    mesh: DeviceMesh,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> DTensor:
    """What `scaled_dot_product_attention` returns, of tensors of which at least one is a DTensor. Collective.

    Args:
        mesh: the ranks that sequences are divided among.
        query: [items, heads, length, features].
    """
    dim = query.ndim - 2
    query, key, value = (replicated(one, mesh) for one in (query, key, value))
    query = divided(query, Shard(dim))
    options: dict[str, Any] = {"scale": scale, "enable_gqa": enable_gqa}
    if query.ndim == BATCHED and key.shape[dim] == query.shape[dim]:
        key, value = (divided(one, Shard(dim)) for one in (key, value))
        if can_divide_heads((query, key, value)):
            further = {"dropout_p": dropout_p, "is_causal": is_causal, **options}
            return attention_by_heads(query, key, value, attn_mask, further)
        is_ring = is_causal and attn_mask is None and not dropout_p
        if is_ring and (mixed := _balanced_ring(query, key, value, options)) is not None:
            return mixed
    return _over_whole_keys(query, key, value, attn_mask, is_causal, {"dropout_p": dropout_p, **options})


def _balanced_ring(query: DTensor, key: DTensor, value: DTensor, options: dict[str, Any]) -> DTensor | None:
    """Causal self-attention in which every rank has the same work; None if no kernel of the ring takes its tensors."""
    mesh, length = query.device_mesh, query.shape[2]
    group = mesh.get_group()
    plan = exchange(length, mesh.size(), mesh.get_local_rank(), query.device)
    rows = [part_of(one).permute(2, 0, 1, 3) for one in (query, key, value)]  # [length, items, heads, features]
    together = to_balanced(torch.cat([one.flatten(1) for one in rows], dim=1), plan, group)
    parts = torch.split(together, [one.shape[1:].numel() for one in rows], dim=1)
    query, key, value = (
        of_part(part.view(-1, *one.shape[1:]).permute(1, 2, 0, 3), mesh, dim=2, length=len(part) * mesh.size())
        for part, one in zip(parts, rows, strict=True)
    )
    choose: Any = torch._fused_sdp_choice
    kernel = choose(query.to_local(), key.to_local(), value.to_local(), is_causal=True, **options)
    if kernel not in KERNELS:
        return None
    # Another kernel would take these positions, which are balanced, for those of a sequence that is in order.
    with sdpa_kernel(KERNELS[kernel]):
        mixed = cast("DTensor", scaled_dot_product_attention(query, key, value, is_causal=True, **options))
    own = to_order(part_of(mixed).permute(2, 0, 1, 3), plan, group)
    return of_part(own.permute(1, 2, 0, 3), mesh, dim=2, length=length)


def _over_whole_keys(
    query: DTensor, key: DTensor, value: DTensor, mask: Tensor | None, is_causal: bool, options: dict[str, Any]
) -> DTensor:
    """Each rank's queries attend to the keys of all ranks, which are gathered: under any mask."""
    mesh, dim = query.device_mesh, query.ndim - 2
    own = part_of(query)
    keys, values = (gathered(one) for one in (key, value))
    mine = in_order(query.shape[dim], mesh.size(), mesh.get_local_rank())
    if mask is not None:
        mask = gathered(replicated(mask, mesh))
        if mask.shape[-2] > 1:
            mask = mask.narrow(-2, mine.start, len(mine))
    elif is_causal:
        mask = torch.ones(len(mine), keys.shape[dim], dtype=torch.bool, device=own.device).tril(mine.start)
    mixed = scaled_dot_product_attention(own, keys, values, mask, **options)
    return of_part(mixed, mesh, dim=dim, length=query.shape[dim])


def _forward_on_cpu(op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[DTensor, ...]:
    defaults: list[Any] = [None, None, None, 0.0, False]
    query, key, value, dropout, is_causal = [*args, *defaults[len(args) :]]
    results = torch_ring._templated_ring_attention(
        query.device_mesh.get_group(),
        2,
        aten._scaled_dot_product_flash_attention_for_cpu.default,
        query.to_local(),
        key.to_local(),
        value.to_local(),
        is_causal,
        dropout_p=dropout,
        scale=kwargs.get("scale"),
    )
    return tuple(DTensor.from_local(one, query.device_mesh, [Shard(2)], run_check=False) for one in results)


def _backward_on_cpu(op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[DTensor, ...]:
    *tensors, dropout, is_causal = args
    mesh = tensors[0].device_mesh
    grad_out, query, key, value, out, logsumexp = (one.to_local() for one in tensors)
    results = torch_ring._templated_ring_attention_backward(
        mesh.get_group(),
        2,
        cast("Any", _kernel_backward),
        grad_out,
        "grad_out",
        query,
        key,
        value,
        out,
        logsumexp,
        is_causal,
        dropout_p=dropout,
        scale=kwargs.get("scale"),
    )
    return tuple(DTensor.from_local(one, mesh, [Shard(2)], run_check=False) for one in results)


def _kernel_backward(
    *,
    grad_out: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    logsumexp: Tensor,
    dropout_p: float,
    is_causal: bool,
    scale: float | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The backward of the CPU's kernel, by the names that torch's ring gives."""
    kernel: Any = aten._scaled_dot_product_flash_attention_for_cpu_backward.default
    gradients: tuple[Tensor, Tensor, Tensor] = kernel(
        grad_out, query, key, value, out, logsumexp, dropout_p, is_causal, scale=scale
    )
    return gradients


_ON_CPU: dict[Any, Any] = {
    aten._scaled_dot_product_flash_attention_for_cpu.default: _forward_on_cpu,
    aten._scaled_dot_product_flash_attention_for_cpu_backward.default: _backward_on_cpu,
}
"""What DTensor calls for the kernels of the CPU, as torch_ring.custom_ops has it for those of CUDA devices."""
