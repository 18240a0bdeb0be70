"""A GPT of two blocks on random bytes: three hooks, and the same data for a hand-written loop."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from runner import Data

ITEMS, LENGTH, BYTES = 512, 128, 256


class Windows:
    """Items of [128] bytes and the [128] that follow each; a batch is read with one index operation."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.text = torch.randint(0, BYTES, (ITEMS, LENGTH + 1), generator=generator)

    def __len__(self) -> int:
        return ITEMS

    def __getitems__(self, indices: list[int]) -> Any:
        windows = self.text[indices]
        return windows[:, :-1], windows[:, 1:]


class Block(nn.Module):
    """Causal attention and an MLP, each after a normalization and around a residual."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Any:
        """x: [items, length, width]; returns the same shape."""
        items, length, width = x.shape
        queries, keys, values = (
            one.view(items, length, self.heads, -1).transpose(1, 2) for one in self.qkv(self.norm1(x)).chunk(3, dim=-1)
        )
        attended = F.scaled_dot_product_attention(queries, keys, values, is_causal=True)
        x = x + self.out(attended.transpose(1, 2).reshape(items, length, width))
        return x + self.mlp(self.norm2(x))


class GPT(nn.Module):
    """Bytes to logits of the next ones."""

    def __init__(self, width: int = 128, heads: int = 4, depth: int = 2) -> None:
        super().__init__()
        self.bytes, self.places = nn.Embedding(BYTES, width), nn.Embedding(LENGTH, width)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, BYTES, bias=False)

    def forward(self, x: Tensor) -> Any:
        """x: [items, length]; returns [items, length, bytes]."""
        places = torch.arange(x.shape[1], device=x.device)
        return self.head(self.norm(self.blocks(self.bytes(x) + self.places(places))))


def build_model() -> nn.Module:
    """A GPT of 0.5 million weights."""
    return GPT()


def build_data() -> Data:
    """Return the batch unchanged: the dataset already reads whole batches."""
    return Data(train=Windows(), collate=lambda batch: batch)


def compute_loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """The mean over all bytes of the micro-batch."""
    x, y = batch
    return F.cross_entropy(model(x).flatten(0, 1), y.flatten())
