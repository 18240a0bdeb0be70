"""Evaluation: processes every item of every evaluation set once, divided among all ranks."""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from runner.config.run_spec import RunSpec
from runner.data.datasets import eval_sets, set_name
from runner.data.passes import Passes
from runner.engine.measure import LOSS, LossMeans
from runner.errors import HookError
from runner.protocols import Data, Meter, Metric, MicroBatch, Placed, World
from runner.world.activity import Activity, Phase

logger = logging.getLogger(__name__)


class EvaluationSet(NamedTuple):
    """A dataset that is evaluated, and what the recipe says of it."""

    name: str
    """Empty for a single one."""
    path: str
    """eval, or eval/<name>."""
    dataset: Any
    prefix: str
    """What its metrics are called before the last slash: its path, unless eval.sets says otherwise."""
    metrics: Mapping[str, Metric]


def evaluation_sets(data: Data, spec: RunSpec) -> list[EvaluationSet]:
    """Every evaluation set, in the data hook's order."""
    found = []
    for path, dataset in eval_sets(data).items():
        name = set_name(path)
        own = spec.eval.of_set(name)
        metrics = {key: one for key, one in spec.metric.items() if own.metrics is None or key in own.metrics}
        found.append(EvaluationSet(name, path, dataset, own.prefix or path, metrics))
    return found


def evaluate(
    placed: Placed,
    sets: Iterable[EvaluationSet],
    spec: RunSpec,
    world: World,
    activity: Activity,
    *,
    passes: Passes,
) -> dict[str, float]:
    """Evaluate the metrics of some evaluation sets; the same result on every rank. Collective.

    Args:
        sets: those to evaluate.
        world: all ranks of the run.
        activity: is told what this rank does.
        passes: reads the evaluation sets; it may be used again for the next evaluation.

    Returns:
        Values by name: <prefix>/<metric>.
    """
    # A device without float64 would round the sums: then they are kept on the host, which waits for every loss.
    on_device = spec.hardware.has_dtype(torch.float64)
    summands = world.along(*world.axes.loss)
    values: dict[str, float] = {}
    for one in sets:
        means = LossMeans(on_device=on_device)
        meters: dict[str, Meter] = {"": means}
        meters |= {name: metric.build(name=name, on_device=on_device) for name, metric in one.metrics.items()}
        _update(meters.values(), placed, _noted(passes.read(one.dataset, one.path), activity))
        for meter in meters.values():
            meter.merge(summands)
        _check_counts(means.uncounted(), one.prefix)
        values |= {f"{one.prefix}/{name}": value for name, value in _computed(meters).items()}
    return values


def prefixes(data: Data, spec: RunSpec) -> list[str]:
    """What the metrics of each evaluation set are called before the last slash."""
    return [one.prefix for one in evaluation_sets(data, spec)]


def _check_counts(uncounted: Sequence[str], prefix: str) -> None:
    """Log each metric of the loss hook whose count was 0, which is then nan.

    Raises:
        HookError: so was the loss's.
    """
    if LOSS in uncounted:
        raise HookError(
            f"{prefix}/{LOSS} has no value: the loss hook's count was 0 in every micro-batch of every rank. Count what "
            "Loss.total sums over, and see that the evaluation set has some of it."
        )
    for name in uncounted:
        logger.warning("%s/%s is nan: its count was 0 in every micro-batch of every rank", prefix, name)


def _noted(micro_batches: Iterable[MicroBatch], activity: Activity) -> Iterator[MicroBatch]:
    activity.enter(Phase.DATA)
    for micro_batch in micro_batches:
        activity.enter(Phase.EVALUATION)
        yield micro_batch
        activity.enter(Phase.DATA)
    activity.enter(Phase.EVALUATION)


def _update(meters: Iterable[Meter], placed: Placed, micro_batches: Iterable[MicroBatch]) -> None:
    """Evaluate every micro-batch and update all meters; only one loss is in memory at a time."""
    all_meters = [*meters]
    for loss in placed.evaluate(micro_batches):
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
