"""What ranks do with a frozen declaration if they do not train it: task.json, beside the declaration of a job.

A job is a directory of its own: job.yaml is the declaration, in place of a run's spec.yaml, so that nobody takes it for
a run that could be resumed. Status, logs and reports of failures stand where a run has them.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from runner import durable
from runner.config.damage import read_json
from runner.config.run_dir import RunDir

__all__ = ["EVALUATION", "JOB", "Task", "Verb", "is_job", "read_task", "write_task"]

JOB = "job.yaml"
"""The frozen declaration of a job."""
TASK = "task.json"
EVALUATION = "evaluation.json"
"""The result of an evaluation, in its job's directory: {"step": …, "metrics": {…}}."""


class Verb(StrEnum):
    """What ranks can do instead of training."""

    EVALUATE = "evaluate"
    PREDICT = "predict"


@dataclass(frozen=True, kw_only=True)
class Task:
    """What the ranks of a job do."""

    verb: Verb
    checkpoint: str | None = None
    """The directory of the committed checkpoint whose weights are used; None = those of `weights`."""
    weights: str | None = None
    """The exported weights that are used: a directory or a .safetensors file; None = those that the model hook made."""
    on: str | None = None
    """The dataset that is predicted on, by its name; None = the only evaluation set."""
    out: str | None = None
    """The file of a prediction."""


def write_task(job: RunDir, task: Task) -> None:
    """Write task.json."""
    durable.replace(job.path / TASK, json.dumps(asdict(task), indent=1) + "\n")


def is_job(directory: RunDir) -> bool:
    """Whether a directory is that of a job."""
    return (directory.path / TASK).exists()


def read_task(directory: RunDir) -> Task | None:
    """The task in a directory; None if its declaration is to be trained."""
    try:
        return read_json(directory.path / TASK, _task)
    except FileNotFoundError:
        return None


def _task(value: Any) -> Task:
    if not isinstance(value, Mapping):
        raise ValueError("it does not hold an object")
    return Task(**{**value, "verb": Verb(value["verb"])})
