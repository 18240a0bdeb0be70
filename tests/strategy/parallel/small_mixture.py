"""The model of the expert axis' tests, a language model of two mixtures, and how each of its ranks trains it."""

from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.distributed.tensor import DTensor

from runner import Loss
from runner.model.experts import MixtureOfExperts, balance_loss, router_z_loss
from runner.optimizer.adamw import AdamW
from runner.protocols import Clip, MicroBatch, StepBatches
from tests.strategy.ranks import builder, model_of

WIDTH, HIDDEN, TOP_K, WORDS = 8, 12, 2, 16
EXPERTS = (8, 6)
"""Of each block: divided by 2 expert ranks, two shards divide the 4 experts of the one, but not the 3 of the other."""
DRAW = torch.Generator().manual_seed(0)
TOKENS = torch.randint(WORDS, (12, 6), generator=DRAW)
COUNTED = torch.arange(5) < torch.randint(1, 6, (12, 1), generator=DRAW)
"""Sequences of 1 to 5 tokens that count."""


class Block(nn.Module):
    """A mixture with a residual connection."""

    def __init__(self, num_experts: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.mixture = MixtureOfExperts(width=WIDTH, hidden=HIDDEN, num_experts=num_experts, top_k=TOP_K)

    def forward(self, x: Any) -> Any:
        output, router_logits = self.mixture(self.norm(x))
        return x + output, router_logits


class Mixtures(nn.Module):
    """Predicts a token from the one before it."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(WORDS, WIDTH)
        self.blocks = nn.ModuleList(Block(num_experts) for num_experts in EXPERTS)
        self.head = nn.Linear(WIDTH, WORDS)

    def forward(self, tokens: Any) -> Any:
        x, routing = self.embedding(tokens), []
        for block in self.blocks:
            x, router_logits = block(x)
            routing.append(router_logits)
        return self.head(x), routing


def seeded_mixtures() -> Any:
    torch.manual_seed(0)
    return Mixtures()


def mixture_loss(model: Any, batch: Any) -> Any:
    """Cross-entropy with both auxiliary losses, over the tokens that count."""
    tokens, counted = batch
    logits, routing = model(tokens[:, :-1])
    each = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="none").view_as(counted)
    total = (each * counted).sum()
    for router_logits in routing:
        total = total + 0.1 * balance_loss(router_logits, counted, top_k=TOP_K)
        total = total + 0.01 * router_z_loss(router_logits, counted)
    return Loss(total, counted.sum())


def prepare(
    world: Any,
    part: Any,
    *,
    loss: Any = mixture_loss,
    build: Any = seeded_mixtures,
    apply: Any = lambda model: None,
    **more: Any,
) -> Any:
    """What trains the model.

    Args:
        apply: what is done to the model before it is sharded.
    """
    optimizer = partial(AdamW(lr=0.01).build, items=1)
    plain = builder(build=build, optimizer=optimizer, loss=loss, **more)
    return part.prepare(replace(plain, recompute=apply), world)


def batches_of(world: Any, num_micro_batches: int) -> Any:
    """Twelve sequences over data ranks and micro-batches."""
    data = world.along(*world.axes.data)
    tokens, counted = (
        whole.chunk(num_micro_batches * data.size)[data.rank :: data.size] for whole in (TOKENS, COUNTED)
    )
    return StepBatches([MicroBatch(pair, len(pair[0])) for pair in zip(tokens, counted, strict=True)], len(TOKENS))


def trained(world: Any, part: Any, num_micro_batches: int = 1, clip: Any = None, steps: int = 5, **more: Any) -> Any:
    """Loss and gradient norm of each step, then the evaluated loss and the weights."""
    trainable = prepare(world, part, clip=Clip(norm=clip), **more)
    losses, norms = steps_of(world, trainable, num_micro_batches, steps)
    micro_batches = batches_of(world, num_micro_batches).micro_batches
    evaluated = mean(world, list(trainable.evaluate(micro_batches)))
    return losses, norms, evaluated, weights(trainable)


def steps_of(world: Any, trainable: Any, num_micro_batches: int, steps: int) -> Any:
    """Loss and gradient norm of each step."""
    losses, norms = [], []
    for _ in range(steps):
        step = trainable.forward_backward(batches_of(world, num_micro_batches))
        losses.append(mean(world, step.losses))
        norms.append(trainable.update(measure=True).grad_norm.item())
    return losses, norms


def mean(world: Any, losses: Any) -> Any:
    """The loss over all ranks and micro-batches."""
    own = torch.zeros(2)  # on ranks of earlier stages of a pipeline, there are no losses
    for loss in losses:
        own += torch.stack([loss.value.detach() * loss.weight, torch.as_tensor(loss.count)])
    total, count = world.along(*world.axes.loss).sum(own)
    return (total / count).item()


def weights(trainable: Any) -> Any:
    """The whole weights, by the model's names."""
    named = model_of(trainable).state_dict()
    return {name: (w.full_tensor() if isinstance(w, DTensor) else w).clone() for name, w in named.items()}
