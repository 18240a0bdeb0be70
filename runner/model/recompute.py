"""Activation checkpointing: Chen et al. (arXiv:1604.06174), by torch.utils.checkpoint."""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch.nn import Module
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

aten = torch.ops.aten
# What costs most to compute again: matrix products, convolutions, attention.
KEPT = [
    aten.mm.default,
    aten.bmm.default,
    aten.addmm.default,
    aten.baddbmm.default,
    aten.convolution.default,
    aten._scaled_dot_product_flash_attention.default,
    aten._scaled_dot_product_flash_attention_for_cpu.default,
    aten._scaled_dot_product_efficient_attention.default,
    aten._scaled_dot_product_cudnn_attention.default,
]


def recompute(blocks: Iterable[Module], *, selective: bool) -> None:
    """Let each block's forward run again in backward; modules, classes and names stay as they are.

    What hooks on a block do (those that gather its shards, for one) stays outside of what is computed again. Random
    numbers are those of the first time.

    Args:
        selective: what costs most is kept all the same.
    """
    for block in blocks:
        block.forward = _selectively(block.forward) if selective else _wholly(block.forward)


# Plain functions, with the call written out: torch.compile begins at a function's frame and knows `checkpoint` inside
# it; of a functools.partial over `checkpoint` it would compile nothing and not say so.
def _wholly(forward: Callable[..., Any]) -> Callable[..., Any]:
    def recomputed(*args: Any, **kwargs: Any) -> Any:
        return checkpoint(forward, *args, use_reentrant=False, **kwargs)

    return recomputed


def _selectively(forward: Callable[..., Any]) -> Callable[..., Any]:
    def recomputed(*args: Any, **kwargs: Any) -> Any:
        return checkpoint(forward, *args, use_reentrant=False, context_fn=_contexts, **kwargs)

    return recomputed


def _contexts() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    contexts: tuple[AbstractContextManager[Any], AbstractContextManager[Any]]
    contexts = create_selective_checkpoint_contexts(KEPT)  # type: ignore[no-untyped-call]
    return contexts
