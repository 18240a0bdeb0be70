"""For data hooks with streams: how a stream is read, and a step of a source of one's own."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, final

from runner.data.loader import micro_batch
from runner.data.steps import Parts, cut_items
from runner.protocols import SourceRequest, StepBatches


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
    draws: bool = True
    """Whether it may draw from Python's, NumPy's or torch's global generators, which are seeded for each item then."""

    def __iter__(self) -> Iterator[Any]:
        return iter(self.dataset)


def step_batches(items: Sequence[Any], request: SourceRequest) -> StepBatches:
    """This rank's micro-batches of one step, collated and on the device; all ranks' where it reads for the others.

    Args:
        items: all items of the step, the same on every rank; fewer than `request.step_items` make a short step.
    """
    cut = cut_items(items, Parts.of(request.world, request.loader), micro_items=request.micro_items)
    return StepBatches([micro_batch(*part, request.loader) for part in cut], len(items))
