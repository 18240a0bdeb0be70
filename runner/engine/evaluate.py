"""Evaluation: processes every item of every evaluation set once, divided among all ranks."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch

from runner.config.run_spec import RunSpec
from runner.data.datasets import eval_sets, is_stream, num_items
from runner.data.loader import load
from runner.data.source import loader_options
from runner.data.steps import single_pass
from runner.data.streamed import StreamedSource
from runner.engine.measure import LossMeans
from runner.errors import HookError
from runner.protocols import Data, LoaderOptions, Meter, MicroBatch, Trainable, World
from runner.world.activity import Activity, Phase
from runner.world.seeds import mix


def evaluate(trainable: Trainable, data: Data, spec: RunSpec, world: World, activity: Activity) -> dict[str, float]:
    """Evaluate all metrics on all evaluation sets; the same result on every rank. Collective.

    Args:
        world: all ranks of the run.
        activity: is told what this rank does.

    Returns:
        Values by name: eval/<metric>, or eval/<set>/<metric> if the sets are named.
    """
    # A device without float64 would round the sums: then they are kept on the host, which waits for every loss.
    on_device = spec.hardware.has_dtype(torch.float64)
    readers, summands = world.along(*world.axes.data), world.along(*world.axes.loss)
    options = loader_options(spec, data, world)
    values: dict[str, float] = {}
    for prefix, dataset in eval_sets(data).items():
        meters: dict[str, Meter] = {"": LossMeans(on_device=on_device)}
        meters |= {name: metric.build(on_device=on_device) for name, metric in spec.metric.items()}
        micro_batches = _micro_batches(dataset, prefix, options, spec, readers)
        _update(meters.values(), trainable, _noted(micro_batches, activity))
        for meter in meters.values():
            meter.merge(summands)
        values |= {f"{prefix}/{name}": value for name, value in _computed(meters).items()}
    return values


def _micro_batches(
    dataset: Any, name: str, options: LoaderOptions, spec: RunSpec, world: World
) -> Iterable[MicroBatch]:
    """This rank's micro-batches of an evaluation set."""
    micro_items, seed = spec.eval.micro_items or spec.batch.micro_items, mix(spec.run.seed, 1)
    if is_stream(dataset):
        step_items = micro_items * world.size
        return StreamedSource(
            dataset, name, step_items=step_items, micro_items=micro_items, world=world, seed=seed, options=options
        ).single_pass()
    indices = single_pass(num_items(dataset, name), micro_items=micro_items, rank=world.rank, ranks=world.size)
    return load(dataset, indices, options, seed=seed)


def _noted(micro_batches: Iterable[MicroBatch], activity: Activity) -> Iterator[MicroBatch]:
    activity.enter(Phase.DATA)
    for micro_batch in micro_batches:
        activity.enter(Phase.EVALUATION)
        yield micro_batch
        activity.enter(Phase.DATA)
    activity.enter(Phase.EVALUATION)


def _update(meters: Iterable[Meter], trainable: Trainable, micro_batches: Iterable[MicroBatch]) -> None:
    """Evaluate every micro-batch and update all meters; only one loss is in memory at a time."""
    all_meters = [*meters]
    for loss in trainable.evaluate(micro_batches):
        for meter in all_meters:
            meter.update(loss)


def _computed(meters: Mapping[str, Meter]) -> dict[str, float]:
    """The values of all meters.

    Raises:
        HookError: two meters give the same name.
    """
    values: dict[str, float] = {}
    for option, meter in meters.items():
        computed = meter.compute()
        if duplicates := sorted(values.keys() & computed.keys()):
            raise HookError(
                f"metric.{option} gives {duplicates[0]!r}, and so does another metric or the loss hook. Rename the "
                f"loss hook's, or remove metric.{option}."
            )
        values |= computed
    return values
