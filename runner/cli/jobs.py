"""`runner evaluate` and `runner predict`: use a run without training it."""

import argparse
from pathlib import Path

from runner.cli.arguments import run_words, split_words, words_of
from runner.cli.launched import prepare_process, print_directory
from runner.composition.find_recipe import find
from runner.config.named_path import is_directory
from runner.config.run_dir import RunDir
from runner.config.task import EVALUATION
from runner.runs import jobs

__all__ = ["evaluate", "predict"]


def evaluate(found: argparse.Namespace) -> int:
    """Evaluate a run, and print its metrics.

    Raises:
        SpecError, CheckpointError, RunFailed, Interrupted: as `runner.runs.jobs.evaluate`.
    """
    prepare_process()
    run_dir, overrides = run_words(found, prog="runner evaluate")
    directories: list[Path] = []
    jobs.evaluate(
        run_dir,
        overrides,
        step=found.step,
        best=found.best,
        weights=found.weights,
        trust=found.trust,
        at_end=directories.append,
    )
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
    first, overrides = split_words(words_of(found), prog="runner predict", first="DIR")
    run_dir = RunDir(Path(first).absolute())
    source = run_dir if is_directory(run_dir.path) and run_dir.specs() else find(first)
    jobs.predict(
        source,
        overrides,
        on=found.on,
        out=found.out,
        step=found.step,
        best=found.best,
        weights=found.weights,
        trust=found.trust,
        at_end=print_directory,
    )
    return 0
