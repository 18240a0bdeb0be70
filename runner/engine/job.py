"""The jobs of ranks that do not train: an evaluation, or a prediction."""

import json
from typing import Any

from runner import durable
from runner.config.run_dir import RunDir
from runner.config.run_spec import RunSpec
from runner.config.task import EVALUATION, Task, Verb
from runner.data.passes import Passes
from runner.engine.evaluate import evaluate, evaluation_sets
from runner.engine.inference import open_inference
from runner.engine.predict import predict
from runner.engine.session import Stopping
from runner.errors import DataError
from runner.protocols import World
from runner.world.activity import Activity


def perform(task: Task, spec: RunSpec, run_dir: RunDir, world: World, stopping: Stopping, activity: Activity) -> None:
    """Do a task as one of its ranks. Collective.

    Args:
        run_dir: of the job.
    """
    if task.verb is Verb.PREDICT:
        predict(task, spec, run_dir, world, stopping, activity)
    else:
        _evaluate(task, spec, run_dir, world, activity)


def _evaluate(task: Task, spec: RunSpec, run_dir: RunDir, world: World, activity: Activity) -> None:
    with open_inference(spec, task, run_dir, world) as job:
        if job.data.eval is None:
            raise DataError(f"{spec.data.target} returned no eval dataset, so there is nothing to evaluate on.")
        with job.around():
            passes = Passes(spec, job.data, world)
            metrics = evaluate(job.placed, evaluation_sets(job.data, spec), spec, world, activity, passes=passes)
        if world.is_main:
            result: dict[str, Any] = {"step": job.progress.step, "metrics": metrics}
            durable.replace(run_dir.path / EVALUATION, json.dumps(result, indent=1) + "\n")
            run_dir.write_status("done", step=job.progress.step, metrics=metrics)
