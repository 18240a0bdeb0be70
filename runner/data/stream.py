"""For streams of a user's own: the rank's part of a step of which every rank has read all items."""

from collections.abc import Sequence
from typing import Any

from runner.data.loader import to_device
from runner.data.steps import split
from runner.protocols import MicroBatch, SourceRequest, StepBatches


def step_batches(items: Sequence[Any], request: SourceRequest) -> StepBatches:
    """This rank's micro-batches of one step, collated and on the device.

    Args:
        items: all items of the step, the same on every rank; fewer than `request.step_items` make a short step.
    """
    world, options = request.world, request.loader
    slots = split(len(items), ranks=world.size, micro_items=request.micro_items)[world.rank :: world.size]
    micro_batches = []
    for first, length in slots:
        batch = options.collate([*items[first : first + max(length, 1)]])
        moved = to_device(batch, options.device, non_blocking=options.pin_memory)
        micro_batches.append(MicroBatch(moved, length))
    return StepBatches(micro_batches, len(items))
