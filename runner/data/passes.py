"""Passes over a dataset, each of whose items is read once: for evaluation and prediction."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, final

from torch import device

from runner.config.run_spec import Reader, RunSpec
from runner.data.datasets import is_stream, num_items
from runner.data.dispatch import Dispatch, for_all_ranks, in_rounds
from runner.data.loader import WorkerLoader, load
from runner.data.source import loader_options
from runner.data.steps import Parts, single_pass
from runner.data.streamed import StreamedSource
from runner.protocols import Data, LoaderOptions, MicroBatch, MicroBatchIndices, World
from runner.world.seeds import mix
from runner.world.solo import SoloWorld


@final
class Passes:
    """Reads datasets from end to end, each rank its own part. Keeps workers if `loader.persistent_workers` says so."""

    def __init__(self, spec: RunSpec, data: Data, world: World) -> None:
        """Begin.

        Args:
            world: all ranks of the run.
        """
        self._readers = world.along(*world.axes.data)
        self._options = replace(loader_options(spec, data, world), persistent_workers=spec.loader.persistent_workers)
        self._dispatches = spec.loader.source is Reader.RANK_0 and self._readers.size > 1
        self._micro_items = spec.eval.micro_items or spec.batch.micro_items
        self._seed = mix(spec.run.seed, 1)
        self._workers: dict[str, WorkerLoader] = {}

    def read(self, dataset: Any, name: str, *, start: int = 0) -> Iterator[MicroBatch]:
        """This rank's micro-batches of the items from `start` on: equally many on every rank. Collective for streams.

        Args:
            name: of the dataset among those of the run; its workers are known by it.
        """
        readers, options = self._readers, self._options
        if not self._dispatches:
            yield from self._own(dataset, name, options, readers, start=start)
            return
        for_all = for_all_ranks(options, readers.size)
        alone = SoloWorld(device("cpu"))
        of_all = iter(()) if readers.rank else self._own(dataset, name, for_all, alone, start=start)
        for step in Dispatch(readers, options).hand_out(in_rounds(of_all, readers.size)):
            yield from step.micro_batches

    def _own(
        self, dataset: Any, name: str, options: LoaderOptions, world: World, *, start: int
    ) -> Iterator[MicroBatch]:
        parts = Parts.of(world, options)
        if is_stream(dataset):
            return StreamedSource(
                dataset,
                name,
                step_items=self._micro_items * parts.ranks,
                micro_items=self._micro_items,
                world=world,
                seed=self._seed,
                options=options,
            ).single_pass()
        plan = _Plan(num_items(dataset, name), start, self._micro_items, parts)
        if not (options.persistent_workers and options.workers):
            return load(dataset, plan, options, seed=self._seed)
        if name not in self._workers:
            self._workers[name] = WorkerLoader(dataset, plan, options, seed=self._seed)
        return iter(self._workers[name])


@final
class _Plan:
    """The micro-batches of a pass, as often as it is made."""

    def __init__(self, num_items: int, start: int, micro_items: int, parts: Parts) -> None:
        self._num_items = num_items
        self._start = start
        self._micro_items = micro_items
        self._parts = parts

    def __iter__(self) -> Iterator[MicroBatchIndices]:
        parts = self._parts
        return single_pass(
            self._num_items,
            start=self._start,
            micro_items=self._micro_items,
            rank=parts.first,
            ranks=parts.ranks,
            reads_for=parts.num,
        )
