"""A source whose steps have several rounds: phases that update their models so many times in one step."""

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any, final

from runner.protocols import Source, StepBatches


@final
class RoundsSource:
    """Makes one step of several of another source, each of which is a round of it. Its state is the other's."""

    def __init__(self, source: Source, *, rounds: int) -> None:
        self._source = source
        self._rounds = rounds

    @property
    def position(self) -> int:
        """Items of the steps returned so far."""
        return self._source.position

    def __iter__(self) -> Iterator[StepBatches]:
        steps = iter(self._source)
        while rounds := tuple(islice(steps, self._rounds)):
            micro_batches = [micro_batch for one in rounds for micro_batch in one.micro_batches]
            yield StepBatches(micro_batches, sum(one.items for one in rounds), rounds)

    def state_dict(self) -> dict[str, Any]:
        """The state after the last round. Collective."""
        return self._source.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a state."""
        self._source.load_state_dict(state)
