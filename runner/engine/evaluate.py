"""Evaluation over every item once, on all ranks."""

import torch

from runner.data.loader import num_items, read
from runner.data.order import once
from runner.engine.measure import means, on_device, on_host
from runner.engine.session import Session
from runner.world.seeds import mix


def evaluate(session: Session) -> dict[str, float]:
    """Means of loss and metrics over the evaluation dataset, named eval/…; the same on every rank. Collective."""
    spec, world, data = session.spec, session.world, session.data
    axes = spec.strategy.axes(world.size)
    shares = once(
        num_items(data.eval, "eval"),
        micro_items=spec.eval.micro_items or spec.batch.micro_items,
        rank=world.rank % axes.data_ranks,
        ranks=axes.data_ranks,
    )
    micro_batches = read(
        data.eval,
        shares,
        collate=data.collate,
        device=world.device,
        workers=spec.loader.workers,
        prefetch=spec.loader.prefetch,
        pinned=spec.hardware.pins_memory,
        seed=mix(spec.run.seed, 1),
    )
    # A device without float64 would round the sums: there the host reads every number as it comes.
    plus = on_device if spec.hardware.has_dtype(torch.float64) else on_host
    found = means(session.trainable.evaluate(micro_batches), world, plus=plus)
    return {f"eval/{name}": value for name, value in found.items()}
