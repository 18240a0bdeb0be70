"""Evaluates a run, or predicts with one: launches its declaration with a task, in a directory of the job's own."""

import json
import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from runner.config import store
from runner.config.claim import claim
from runner.config.run_dir import RunDir
from runner.config.task import EVALUATION, JOB, Task, Verb, read_task, write_task
from runner.errors import Fault, SpecError
from runner.prediction.formats import format_fault
from runner.prediction.parts import has_parts, parts_directory
from runner.runs import attempt
from runner.runs.chosen import best_checkpoint, chosen_checkpoint
from runner.runs.declared import Declared, Source, declaration

__all__ = ["evaluate", "predict", "read_evaluation"]

IDENTITY = ("model", "models", "data", "loss", "predict")
"""Sections that the parts of one prediction have in common; anything else may change between two attempts."""


def evaluate(source: Source, *, at_end: attempt.AtEnd) -> None:
    """Evaluate weights on the evaluation sets, and wait for the end. Main thread only.

    Args:
        source: a run or a recipe, and which weights.
        at_end: called with the directory of the job, in which evaluation.json is.

    Raises:
        SpecError: the run did not begin on this account, an override cannot be applied, or there is no such checkpoint.
        RunFailed: a rank failed.
        Interrupted: a signal ended the evaluation.
    """
    declared = declaration(source, verb=Verb.EVALUATE)
    task = _task(Verb.EVALUATE, source, declared)
    directory = claim(_beside(source, declared) / "evaluations", key="DIR")
    _launch(declared, task, RunDir(directory), at_end=at_end)


def read_evaluation(directory: Path) -> dict[str, float]:
    """The metrics that an evaluation has left in its directory."""
    metrics: dict[str, float] = json.loads((directory / EVALUATION).read_bytes())["metrics"]
    return metrics


def predict(source: Source, *, on: str | None = None, out: Path | None = None, at_end: attempt.AtEnd) -> None:
    """Write what a model says of each item, and wait. Main thread only.

    Args:
        source: a run or a recipe, and which weights.
        on: the dataset's name; None = the only evaluation set.
        out: the file, which must not exist; its suffix chooses the format. None = a name of its own, in JSON lines.
        at_end: called with the file, once it is complete.

    Raises:
        SpecError: as `evaluate`; the file exists, or holds parts of another prediction.
        RunFailed: a rank failed.
        Interrupted: a signal ended it. The same call continues it.
    """
    declared = declaration(source, verb=Verb.PREDICT)
    task = _task(Verb.PREDICT, source, declared)
    base = _beside(source, declared) / "predictions" / _name_of(task)
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


def _task(verb: Verb, source: Source, declared: Declared) -> Task:
    options = {"--step": source.step is not None, "--best": source.best, "--weights": source.weights is not None}
    given = [name for name, is_given in options.items() if is_given]
    if len(given) > 1:
        raise SpecError(Fault(key=given[1], message=f"{given[0]} says already which weights. Give one of them."))
    if source.weights is not None:
        return Task(verb=verb, weights=_absolute(source.weights))
    if not isinstance(source.of, RunDir):
        if given:
            rule = "a recipe has no checkpoints. Name the directory of a run, or give exported weights: --weights PATH"
            raise SpecError(Fault(key=given[0], message=rule))
        return Task(verb=verb)
    config = declared.stored.config
    path = best_checkpoint(source.of, config) if source.best else chosen_checkpoint(source.of, source.step)
    return Task(verb=verb, checkpoint=str(path))


def _beside(source: Source, declared: Declared) -> Path:
    """Where the directory of a job is made: in the run's, or for a recipe among the outputs of its name."""
    return source.of.path if isinstance(source.of, RunDir) else Path.cwd() / "outputs" / declared.spec.name


def _absolute(weights: Path) -> str:
    if not weights.exists():
        rule = f"{weights} is not there. Name a directory that runner export wrote, or a .safetensors file."
        raise SpecError(Fault(key="--weights", message=rule))
    return str(weights.absolute())


def _name_of(task: Task) -> str:
    """What a prediction's directory is called, after the weights."""
    return Path(task.checkpoint).name if task.checkpoint else "weights" if task.weights else "untrained"


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
