"""The model of the strategies' tests, what it is trained on, and how: a small tower on eight items."""

from functools import partial
from typing import Any

import torch

from runner import Loss
from runner.optimizer.adamw import AdamW
from runner.protocols import MicroBatch, StepBatches
from tests.project.user_hooks.tower import build_model
from tests.strategy.ranks import builder

X = torch.randn(8, 2, generator=torch.Generator().manual_seed(0))


def seeded_model() -> Any:
    torch.manual_seed(0)
    return build_model(width=6, blocks=2)


def sum_loss(model: Any, batch: Any) -> Any:
    return Loss(model(batch).square().sum(), len(batch))


def prepare(
    world: Any, part: Any, *, loss: Any = sum_loss, build: Any = seeded_model, precision: Any = None, clip: Any = None
) -> Any:
    return part.prepare(
        builder(
            build=build,
            optimizer=partial(AdamW(lr=0.01).build, items=1),
            loss=loss,
            precision=precision,
            clip=clip,
        ),
        world,
    )


def micro_batches_of(world: Any, num_micro_batches: int) -> Any:
    """Eight items over ranks and micro-batches."""
    parts = X.chunk(num_micro_batches * world.size)[world.rank :: world.size]
    return StepBatches([MicroBatch(part, len(part)) for part in parts], len(X))
