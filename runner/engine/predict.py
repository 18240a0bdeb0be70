"""Prediction: outputs of every item of a dataset, divided among all ranks, written by rank 0 in the dataset's order."""

import logging
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from runner.config.run_dir import RunDir
from runner.config.run_spec import RunSpec
from runner.config.task import Task
from runner.data.datasets import is_stream, num_items, prediction_sets
from runner.data.passes import Passes
from runner.engine.inference import Inference, Replacement, keep, open_inference
from runner.engine.models import hook_call
from runner.engine.progress import open_progress
from runner.engine.session import Stopping
from runner.errors import DataError, HookError
from runner.model.named import Call
from runner.prediction.parts import Parts
from runner.protocols import Loss, MicroBatchLoss, World
from runner.world.activity import Activity, Phase
from runner.world.hook_ranks import HookRanks

logger = logging.getLogger(__name__)


def predict(task: Task, spec: RunSpec, run_dir: RunDir, world: World, stopping: Stopping, activity: Activity) -> None:
    """Write the outputs of a dataset to the task's file, from where an earlier attempt ended. Collective.

    Raises:
        HookError: the hook gives no outputs, or some that cannot be written.
    """
    assert task.out is not None
    parts = Parts(Path(task.out)) if world.is_main else None
    done = world.broadcast_object(0 if parts is None else parts.items)
    with open_inference(spec, task, run_dir, world, call=_predicting(spec)) as job:
        name, dataset = _chosen(job, task)
        _refuse_stream(name, dataset)
        total = num_items(dataset, name)
        if done and parts is not None:
            logger.info("%d of %d items are there already", done, total)
        with (
            job.around(),
            closing(_outputs(job, dataset, name, start=done, activity=activity)) as rounds,
            closing(open_progress(total, start=done, is_main=world.is_main)) as progress,
        ):
            preempted = _write(rounds, parts, world, stopping, progress.show)
        if parts is not None:
            if preempted:
                parts.commit()
            else:
                parts.finish()
            run_dir.write_status("preempted" if preempted else "done", step=job.progress.step, metrics={})


def _predicting(spec: RunSpec) -> Replacement:
    """With the predict hook in the loss hook's place, which the strategy calls as it calls that one."""
    predict_hook = spec.predict
    if predict_hook is None:
        return keep

    def outputs(ranks: HookRanks) -> Call:
        call = hook_call("predict", predict_hook, spec, ranks)

        def outputs_only(model: Module, batch: Any, items: int) -> Loss:
            outputs = call(model, batch, items)
            if not isinstance(outputs, Mapping):
                raise HookError(
                    f"{predict_hook.target} returned a {type(outputs).__name__}, but a predict hook must return a "
                    "mapping of names to tensors [items, ...] or lists: {'label': logits.argmax(1)}."
                )
            return Loss(torch.zeros(()), 0, outputs=outputs)

        return outputs_only

    return outputs


def _chosen(job: Inference, task: Task) -> tuple[str, Any]:
    sets = prediction_sets(job.data)
    if task.on is None and len(sets) == 2:  # train, and a single evaluation set
        return next((name, dataset) for name, dataset in sets.items() if name != "train")
    if task.on in sets:
        return task.on, sets[task.on]
    what = (
        f"there is no dataset {task.on!r}" if task.on is not None else "there is more than one evaluation set, or none"
    )
    raise HookError(f"{what}. Choose one: --on {' | '.join(sets)}")


def _refuse_stream(name: str, dataset: Any) -> None:
    """Raise DataError if the items of a dataset have no places, by which a prediction goes on after a kill."""
    if is_stream(dataset):
        raise DataError(
            f"the data hook's {name!r} dataset ({type(dataset).__name__}) is a stream, whose items have no places to "
            "go on from. Return a map-style dataset to predict on; a list of the stream's items is one."
        )


def _outputs(job: Inference, dataset: Any, name: str, *, start: int, activity: Activity) -> Generator[MicroBatchLoss]:
    """This rank's micro-batches after the first `start` items; equally many on every rank."""
    if num_items(dataset, name) == start:
        return
    activity.enter(Phase.EVALUATION)
    yield from job.placed.evaluate(Passes(job.spec, job.data, job.world).read(dataset, name, start=start))


def _write(
    rounds: Iterator[MicroBatchLoss],
    parts: Parts | None,
    world: World,
    stopping: Stopping,
    show: Callable[[int], None],
) -> bool:
    """Bring the outputs of each round to rank 0, in rank order. Returns whether the ranks were asked to stop."""
    writers = world.along(*world.axes.loss)  # in a pipeline, the ranks of the last stage have outputs
    for loss in rounds:
        for outputs in writers.gather_on_main(_checked(loss)):
            if parts is not None and outputs is not None:
                parts.add(outputs, len(next(iter(outputs.values()))))
        if parts is not None:
            show(parts.items)
        if world.any(stopping.requested):
            return True
    return False


def _checked(loss: MicroBatchLoss) -> dict[str, Any] | None:
    """The outputs on the host; None for a filler."""
    if loss.outputs:
        return {name: one.detach().cpu() if isinstance(one, Tensor) else one for name, one in loss.outputs.items()}
    if loss.weight:
        raise HookError(
            "there is nothing to write: the loss hook gives no outputs, and the recipe has no predict hook. Return "
            "Loss(total, count, outputs={'preds': …}), or write one: predict: {_target_: …} (docs/evaluation.md)."
        )
    return None
