"""A stream as a source: items without an index, in an order that does not depend on the number of ranks."""

import json
import logging
from collections.abc import Iterator, Mapping
from typing import Any, final

from torch.utils.data import DataLoader

from runner.data.reading import Reading, ReadingAhead, ReadingHere
from runner.data.rotation import Rotation
from runner.data.shards import START, Mark, Place, Sharding, ShardReader, Stateful, sharding_of, shards_of
from runner.data.state import check_state
from runner.data.steps import Parts
from runner.data.stream import Stream
from runner.data.stream_steps import StepReader
from runner.errors import DataError
from runner.protocols import LoaderOptions, MicroBatch, StepBatches, World

logger = logging.getLogger(__name__)
KEYS = {"position", "epoch", "turn", "num_shards", "shards"}
"""Of a state."""


@final
class StreamedSource:
    """One rank's steps of a stream. Every rank takes its items of the same global sequence.

    Its state is how many items of the epoch were taken from each shard, and the stream's own states.
    """

    def __init__(
        self,
        dataset: Any,
        name: str,
        *,
        step_items: int,
        micro_items: int,
        world: World,
        seed: int,
        options: LoaderOptions,
    ) -> None:
        choice = dataset if isinstance(dataset, Stream) else Stream(dataset)
        stream: Any = choice.dataset
        if isinstance(stream, DataLoader) and stream.num_workers and options.workers:
            raise DataError(
                f"the data hook's {name!r} is a loader with num_workers={stream.num_workers}, which a process of "
                f"loader.workers={options.workers} cannot start. Set loader.workers=0, or num_workers=0 in the hook."
            )
        self._stream = stream
        self._draws = choice.draws
        self._has_state = choice.state and isinstance(stream, Stateful)
        self._name = name
        self._step_items = step_items
        self._micro_items = micro_items
        self._world = world
        self._seed = seed
        self._options = options
        self._ranks = Parts.of(world, options).ranks
        self._sharding = _agreed(sharding_of(stream, name, ranks=self._ranks, by_itself=choice.shard), name, world)
        self._own = self._sharding.own(world.rank, world.size)
        self.position = 0
        self._epoch = 0
        self._rotation = Rotation(self._sharding.num_shards)
        self._marks: dict[int, Mark] = {}
        self._reading: Reading | None = None

    def __iter__(self) -> Iterator[StepBatches]:
        reading = self._open(endless=True)
        steps = self._steps(reading)
        while True:
            while step := steps.next_step():
                self.position += step.items
                yield step
            if (items := sum(self._rotation.taken)) < self._step_items:
                raise DataError(
                    f"the data hook's {self._name!r} stream ({type(self._stream).__name__}) has {items} items, fewer "
                    f"than one step of batch.items={self._step_items}: every step would be short. Use "
                    f"batch.items={max(items // self._ranks, 1) * self._ranks}, or return more items."
                )
            self._epoch += 1
            self._rotation.begin_epoch()
            reading.begin_epoch(self._epoch)

    def single_pass(self) -> Iterator[MicroBatch]:
        """Every item once, for evaluation: equally many micro-batches on every rank. Collective.

        Raises:
            DataError: there is none.
        """
        steps = self._steps(self._open(endless=False))
        while step := steps.next_step():
            self.position += step.items
            yield from step.micro_batches
        if self.position == 0:
            raise DataError(f"the data hook's {self._name!r} dataset is empty. Return at least one item.")

    def state_dict(self) -> dict[str, Any]:
        """How far each shard was read, with the stream's own states. Collective."""
        live = [shard for shard in self._own if not self._rotation.ended(shard)]
        mine = {shard: self._mark(shard) for shard in live}
        for mark in mine.values():
            self._check_state(mark)
        marks: dict[int, Mark] = {}
        for of_rank in self._world.gather_objects(mine):
            marks = of_rank | marks
        shards = [
            {"taken": taken, "ended": self._rotation.ended(shard), **vars(marks.get(shard, START))}
            for shard, taken in enumerate(self._rotation.taken)
        ]
        return {
            "position": self.position,
            "epoch": self._epoch,
            "turn": self._rotation.turn,
            "num_shards": self._sharding.declared,
            "shards": shards,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a state, with any number of ranks that the shards suffice for."""
        check_state(state, KEYS, of="a stream")
        shards = state["shards"]
        self._sharding = self._sharding.continued(
            len(shards), declared=state["num_shards"], name=self._name, ranks=self._ranks
        )
        self._own = self._sharding.own(self._world.rank, self._world.size)
        self.position, self._epoch = state["position"], state["epoch"]
        self._rotation = Rotation(len(shards))
        self._rotation.taken, self._rotation.turn = [shard["taken"] for shard in shards], state["turn"]
        self._rotation.note_lengths({number: one["taken"] for number, one in enumerate(shards) if one["ended"]})
        self._marks = {number: Mark(one["items"], one["state"]) for number, one in enumerate(shards)}
        self._reading = None

    def _mark(self, shard: int) -> Mark:
        return self._marks.get(shard, START) if self._reading is None else self._reading.mark(shard)

    def _check_state(self, mark: Mark) -> None:
        """See that a state of the stream's own can be saved."""
        try:
            json.dumps(mark.state)
        except (TypeError, ValueError) as error:
            raise DataError(
                f"the data hook's {self._name!r} stream ({type(self._stream).__name__}) has a state_dict that a "
                f"checkpoint cannot hold: {error}. Let it return numbers, text, lists and mappings only, or return "
                "runner.data.stream.Stream(dataset, state=False), which resumes by counting items."
            ) from error

    def _steps(self, reading: Reading) -> StepReader:
        return StepReader(
            self._name,
            reading,
            self._rotation,
            self._sharding,
            step_items=self._step_items,
            micro_items=self._micro_items,
            world=self._world,
            options=self._options,
        )

    def _open(self, *, endless: bool) -> Reading:
        """Begin to read this rank's shards where the state says. Collective.

        Args:
            endless: whether other epochs follow.
        """
        shards = shards_of(self._stream, self._sharding, self._own)
        readers = {
            number: ShardReader(shard, number, seed=self._seed, use_state=self._has_state, draws=self._draws)
            for number, shard in shards.items()
        }
        taken = {number: self._rotation.taken[number] for number in readers if not self._rotation.ended(number)}
        places = {number: Place(items, self._mark(number)) for number, items in taken.items()}
        reading: Reading
        if self._options.workers:
            reading = ReadingAhead(
                readers, self._epoch, places, self._options, chunk_items=self._micro_items, endless=endless
            )
        else:
            reading = ReadingHere(readers, self._epoch, places)
        self._come_to(places, reading)
        self._reading = reading
        return reading

    def _come_to(self, places: Mapping[int, Place], reading: Reading) -> None:
        """Read what lies between marks and places again. Collective: no rank is far ahead, and all are seen to work."""
        items = sum(place.items - place.mark.items for place in places.values())
        kind = type(self._stream).__name__
        if any(place.mark == START and place.items for place in places.values()):
            way_out = "" if self._has_state else ", which state_dict and load_state_dict would save"
            logger.info(
                "the %s stream (%s) has no state: reading and discarding the %s items of this epoch that were "
                "trained on%s",
                self._name,
                kind,
                f"{items:,}",
                way_out,
            )
        while self._world.any(not reading.skip()):
            logger.info("%s stream: skipped %s of %s items", self._name, f"{reading.skipped:,}", f"{items:,}")


def _agreed(sharding: Sharding, name: str, world: World) -> Sharding:
    """The sharding, which all ranks must see alike. Collective."""
    of_ranks = world.gather_objects(sharding)
    if any(other != of_ranks[0] for other in of_ranks):
        counts = ", ".join(f"{other.num_shards} on rank {rank}" for rank, other in enumerate(of_ranks))
        raise DataError(
            f"the ranks disagree on the number of shards of the data hook's {name!r} stream: {counts}. It must be the "
            "same on every rank: do not divide the stream by rank in the hook."
        )
    return sharding
