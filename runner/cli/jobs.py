"""`runner evaluate` and `runner predict`: use a run without training it."""

import argparse
from pathlib import Path

from runner.cli.arguments import existing_run_or_recipe, split_words, words_of
from runner.cli.launched import prepare_process, print_directory
from runner.config.task import EVALUATION
from runner.runs import jobs
from runner.runs.declared import Source

__all__ = ["evaluate", "predict"]


def evaluate(found: argparse.Namespace) -> int:
    """Evaluate a run or a recipe, and print the metrics.

    Raises:
        SpecError, CheckpointError, RunFailed, Interrupted: as `runner.runs.jobs.evaluate`.
    """
    prepare_process()
    directories: list[Path] = []
    jobs.evaluate(_source(found, prog="runner evaluate"), at_end=directories.append)
    if (directories[0] / EVALUATION).exists():
        metrics = jobs.read_evaluation(directories[0])
        width = max(map(len, metrics), default=0)
        for name, value in metrics.items():
            print(f"{name:<{width}}  {value:.6g}")
    print_directory(directories[0] / EVALUATION)
    return 0


def predict(found: argparse.Namespace) -> int:
    """Write predictions, and print the file.

    Raises:
        SpecError, CheckpointError, RunFailed, Interrupted: as `runner.runs.jobs.predict`.
    """
    prepare_process()
    source = _source(found, prog="runner predict")
    jobs.predict(source, on=found.on, out=found.out, at_end=print_directory)
    return 0


def _source(found: argparse.Namespace, *, prog: str) -> Source:
    first, overrides = split_words(words_of(found), prog=prog, first="DIR|RECIPE")
    return Source(
        of=existing_run_or_recipe(first),
        overrides=overrides,
        step=found.step,
        best=found.best,
        weights=found.weights,
        trust=found.trust,
    )
