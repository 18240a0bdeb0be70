"""A byte-level GPT whose feed-forward networks are mixtures of experts, on the windows that pydoc_lm reads."""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from runner import Data, Loss
from runner.model.experts import MixtureOfExperts, balance_loss, router_z_loss
from user_hooks import pydoc_lm


class Predicted(NamedTuple):
    """What the model returns."""

    logits: Tensor
    """[rows, length, 256], for the byte that follows each."""
    router_logits: Tensor
    """[depth, rows, length, experts]"""


def build_model(*, width: int, depth: int, heads: int, hidden: int, experts: int, top_k: int) -> nn.Module:
    """Build a GPT from bytes [rows, length] to logits; width / heads must be even."""
    return GPT(width=width, depth=depth, heads=heads, hidden=hidden, experts=experts, top_k=top_k)


def build_data(*, context: int) -> Data:
    """Return windows of up to `context` bytes; every tenth document, in the order of their names, is held out."""
    return pydoc_lm.build_data(context=context)


def compute_loss(model: nn.Module, windows: Tensor, *, top_k: int, balance: float, router_z: float) -> Loss:
    """Return the cross-entropy in nats and the weighted losses of the routers, summed over all bytes except padding.

    Args:
        balance: the weight of the balancing loss of each block.
        router_z: the weight of the router's z-loss of each block.
    """
    inputs, targets = windows[:, :-1], windows[:, 1:]
    counted = targets != pydoc_lm.BOUNDARY
    logits, router_logits = model(inputs)
    nats = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=pydoc_lm.BOUNDARY, reduction="sum")
    balances = torch.stack([balance_loss(block, counted, top_k=top_k) for block in router_logits])
    z = router_z_loss(router_logits, counted)
    count = counted.sum()
    metrics = {
        "bits_per_byte": (nats.detach() / math.log(2), count),
        "balance": (balances.detach().mean(), count),  # 1 if each window uses all experts equally
    }
    outputs = {} if model.training else {"bits": pydoc_lm.bits(logits, targets)}
    return Loss(nats + balance * balances.sum() + router_z * z, count, metrics, outputs)


class GPT(nn.Module):
    """A decoder-only, pre-norm transformer with rotary position embeddings; windows may have any length."""

    def __init__(self, *, width: int, depth: int, heads: int, hidden: int, experts: int, top_k: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(256, width)
        self.blocks = nn.ModuleList(Block(width, heads, hidden, experts, top_k) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 256, bias=False)

    def forward(self, inputs: Tensor) -> Predicted:
        """Map bytes [rows, length] to logits and what the routers say."""
        x, router_logits = self.embedding(inputs), []
        for block in self.blocks:
            x, of_block = block(x)
            router_logits.append(of_block)
        return Predicted(self.head(self.norm(x)), torch.stack(router_logits))


class Block(nn.Module):
    """Causal self-attention and a mixture of experts, each with a residual connection."""

    def __init__(self, width: int, heads: int, hidden: int, experts: int, top_k: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.attention_out = nn.Linear(width, width)
        self.mixture_norm = nn.LayerNorm(width)
        self.mixture = MixtureOfExperts(width=width, hidden=hidden, num_experts=experts, top_k=top_k)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map [rows, length, width] to the same shape; beside it, what the router says."""
        projected = self.query_key_value(self.attention_norm(x)).unflatten(-1, (3, self.heads, -1))
        query, key, value = projected.permute(2, 0, 3, 1, 4)  # each [rows, heads, length, width / heads]
        query, key = pydoc_lm.rotate(query), pydoc_lm.rotate(key)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.attention_out(mixed.transpose(1, 2).flatten(-2))
        output, router_logits = self.mixture(self.mixture_norm(x))
        return x + output, router_logits
