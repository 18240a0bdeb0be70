"""Activation checkpointing: Chen et al. (arXiv:1604.06174), by torch.utils.checkpoint."""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch.nn import Module
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

aten = torch.ops.aten
# The most expensive operations to recompute: matrix products, convolutions, attention.
SAVED_OPS = [
    aten.mm.default,
    aten.bmm.default,
    aten.addmm.default,
    aten.baddbmm.default,
    aten._grouped_mm.default,
    aten.convolution.default,
    aten._scaled_dot_product_flash_attention.default,
    aten._scaled_dot_product_flash_attention_for_cpu.default,
    aten._scaled_dot_product_efficient_attention.default,
    aten._scaled_dot_product_cudnn_attention.default,
]


def recompute(blocks: Iterable[Module], *, selective: bool) -> None:
    """Recompute each block's forward in backward; modules, classes and names do not change.

    Hooks on a block (such as those that gather its shards) are not run again. Random numbers are the same as in the
    first forward.

    Args:
        selective: save the results of SAVED_OPS instead of recomputing them.
    """
    for block in blocks:
        block.forward = _selectively(block.forward) if selective else _fully(block.forward)


# Plain functions instead of functools.partial: torch.compile starts at a function's frame and recognizes `checkpoint`
# inside it; a partial over `checkpoint` it would silently not compile.
def _fully(forward: Callable[..., Any]) -> Callable[..., Any]:
    def recomputed(*args: Any, **kwargs: Any) -> Any:
        return checkpoint(forward, *args, use_reentrant=False, **kwargs)

    return recomputed


def _selectively(forward: Callable[..., Any]) -> Callable[..., Any]:
    def recomputed(*args: Any, **kwargs: Any) -> Any:
        return checkpoint(forward, *args, use_reentrant=False, context_fn=_contexts, **kwargs)

    return recomputed


def _contexts() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    contexts: tuple[AbstractContextManager[Any], AbstractContextManager[Any]]
    contexts = create_selective_checkpoint_contexts(SAVED_OPS)  # type: ignore[no-untyped-call]
    return contexts
