"""Evaluates a run, or predicts with one: launches its declaration with a task, in a directory of the job's own."""

import json
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from runner.composition.recipe import Recipe
from runner.config import store
from runner.config.claim import claim
from runner.config.run_dir import RunDir
from runner.config.task import EVALUATION, JOB, Task, Verb, read_task, write_task
from runner.errors import Fault, SpecError
from runner.prediction.formats import format_fault
from runner.prediction.parts import has_parts, parts_directory
from runner.runs import attempt
from runner.runs.chosen import best_checkpoint, chosen_checkpoint
from runner.runs.declared import Declared, of_recipe, of_run

__all__ = ["evaluate", "predict", "read_evaluation"]

IDENTITY = ("model", "data", "loss", "predict")
"""Sections that the parts of one prediction have in common; anything else may change between two attempts."""


def evaluate(
    run_dir: RunDir,
    overrides: Sequence[str],
    *,
    step: int | None = None,
    best: bool = False,
    weights: Path | None = None,
    trust: bool = False,
    at_end: attempt.AtEnd,
) -> None:
    """Evaluate a run's weights on its evaluation sets, and wait for the end. Main thread only.

    Args:
        run_dir: the run's directory.
        overrides: in Hydra's grammar; strategy, hardware, metrics and data may all change.
        step: which checkpoint; None = the newest.
        best: the best checkpoint by checkpoint.metric instead.
        weights: exported weights instead of a checkpoint's.
        trust: accept a run that did not begin on this account.
        at_end: called with the directory of the job, in which evaluation.json is.

    Raises:
        SpecError: the run did not begin on this account, an override cannot be applied, or there is no such checkpoint.
        RunFailed: a rank failed.
        Interrupted: a signal ended the evaluation.
    """
    declared = of_run(run_dir, overrides, trust=trust, verb="evaluate")
    task = _task(Verb.EVALUATE, run_dir, declared, step=step, best=best, weights=weights)
    directory = claim(run_dir.path / "evaluations", key="DIR")
    _launch(declared, task, RunDir(directory), at_end=at_end)


def read_evaluation(directory: Path) -> dict[str, float]:
    """The metrics that an evaluation has left in its directory."""
    metrics: dict[str, float] = json.loads((directory / EVALUATION).read_bytes())["metrics"]
    return metrics


def predict(
    source: RunDir | Recipe,
    overrides: Sequence[str],
    *,
    on: str | None = None,
    out: Path | None = None,
    step: int | None = None,
    best: bool = False,
    weights: Path | None = None,
    config_dirs: Sequence[Path] = (),
    trust: bool = False,
    at_end: attempt.AtEnd,
) -> None:
    """Write what a run, or the model that a recipe's hook makes, says of each item, and wait. Main thread only.

    Args:
        source: a run's directory, or a recipe.
        on: the dataset's name; None = the only evaluation set.
        out: the file, which must not exist; its suffix chooses the format. None = a name of its own, in JSON lines.
        step, best, weights, trust: as for `evaluate`; a recipe has no checkpoints.
        at_end: called with the file, once it is complete.

    Raises:
        SpecError: as `evaluate`; the file exists, or holds parts of another prediction.
        RunFailed: a rank failed.
        Interrupted: a signal ended it. The same call continues it.
    """
    if isinstance(source, Recipe):
        if step is not None or best:
            raise SpecError(Fault(key="--step", message="a recipe has no checkpoints. Name the directory of a run."))
        declared = of_recipe(source, overrides, config_dirs=config_dirs, trust=trust)
        task = Task(verb=Verb.PREDICT, weights=_absolute(weights))
        base = Path.cwd() / "predictions" / declared.spec.name
    else:
        declared = of_run(source, overrides, trust=trust, verb="predict")
        task = _task(Verb.PREDICT, source, declared, step=step, best=best, weights=weights)
        base = source.path / "predictions" / Path(task.checkpoint or "weights").name
    file = (out or base / f"{on or 'eval'}.jsonl").absolute()
    task = replace(task, on=on, out=str(file))
    job = RunDir(parts_directory(file))
    faults = [*_out_faults(file), *_other_prediction(job, declared, task)]
    if faults:
        raise SpecError(*faults)
    job.path.mkdir(parents=True, exist_ok=True)
    _launch(declared, task, job, at_end=lambda _: None)
    if file.exists():  # a launcher may have submitted the job to run elsewhere
        shutil.rmtree(job.path)
        at_end(file)


def _task(
    verb: Verb, run_dir: RunDir, declared: Declared, *, step: int | None, best: bool, weights: Path | None
) -> Task:
    given = [name for name, value in (("--step", step is not None), ("--best", best), ("--weights", weights)) if value]
    if len(given) > 1:
        raise SpecError(Fault(key=given[1], message=f"{given[0]} says already which weights. Give one of them."))
    if weights is not None:
        return Task(verb=verb, weights=_absolute(weights))
    config = declared.stored.config
    path = best_checkpoint(run_dir, config) if best else chosen_checkpoint(run_dir, step)
    return Task(verb=verb, checkpoint=str(path))


def _absolute(weights: Path | None) -> str | None:
    if weights is not None and not weights.exists():
        rule = f"{weights} is not there. Name a directory that runner export wrote, or a .safetensors file."
        raise SpecError(Fault(key="--weights", message=rule))
    return None if weights is None else str(weights.absolute())


def _launch(declared: Declared, task: Task, job: RunDir, *, at_end: attempt.AtEnd) -> None:
    spec = declared.spec
    weights = task.checkpoint or task.weights or "as the model hook makes it"
    print(f"{task.verb.value} {spec.name}: {weights}", file=sys.stderr, flush=True)
    print(f"directory: {job.path}", file=sys.stderr, flush=True)

    def freeze(lock: attempt.Lock) -> Path:
        lock(job)
        path = job.path / JOB
        job.keep_reserve()
        store.save(path, replace(declared.stored, config=dict(spec.config)))
        write_task(job, task)
        job.write_state("queued")
        return path

    attempt.run(spec, freeze, at_end=at_end)


def _out_faults(file: Path) -> Iterator[Fault]:
    if file.exists():
        yield Fault(key="--out", message=f"{file} exists already. Choose another file, or delete it.")
    if fault := format_fault(file):
        yield Fault(key="--out", message=fault)


def _other_prediction(job: RunDir, declared: Declared, task: Task) -> Iterator[Fault]:
    """A fault if the parts that are there are those of another prediction."""
    path = job.path / JOB
    if not has_parts(job.path):
        return
    before, earlier = store.load(path).config, read_task(job)
    now = dict(declared.spec.config)
    changed = [*store.diff(_identity(before), _identity(now))]
    changed += ["the weights, or the dataset"] if earlier is not None and earlier != task else []
    if changed:
        rule = f"{job.path} holds parts of another prediction: {', '.join(changed)} differed. Choose another file, or"
        yield Fault(key="--out", message=f"{rule} delete that directory.")


def _identity(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: config.get(key) for key in IDENTITY}
