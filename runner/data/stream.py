"""For data hooks with streams: how a stream is read, and a step of a source of one's own."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, final

from runner.data.collate import collated
from runner.data.loader import to_device
from runner.data.steps import split
from runner.protocols import MicroBatch, SourceRequest, StepBatches


@final
@dataclass(frozen=True)
class Stream:
    """A stream of which not everything is used that it can do. As `Data.train` or `Data.eval`."""

    dataset: Iterable[Any]
    """The stream."""
    shard: bool = True
    """Whether its own `shard` divides it among ranks, if it has one; else every rank reads it all and keeps its own."""
    state: bool = True
    """Whether its own `state_dict` resumes it, if it has one; else items are counted, and read again."""

    def __iter__(self) -> Iterator[Any]:
        return iter(self.dataset)


def step_batches(items: Sequence[Any], request: SourceRequest) -> StepBatches:
    """This rank's micro-batches of one step, collated and on the device.

    Args:
        items: all items of the step, the same on every rank; fewer than `request.step_items` make a short step.
    """
    world, options = request.world, request.loader
    slots = split(len(items), ranks=world.size, micro_items=request.micro_items)[world.rank :: world.size]
    micro_batches = []
    for first, length in slots:
        batch = collated(options.collate, [*items[first : first + max(length, 1)]])
        moved = to_device(batch, options.device, non_blocking=options.pin_memory)
        micro_batches.append(MicroBatch(moved, length))
    return StepBatches(micro_batches, len(items))
