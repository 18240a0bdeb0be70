"""Trains a stored declaration as a new run, in a directory of its own."""

import sys
from contextlib import ExitStack
from pathlib import Path

from runner.composition.outline import Outline
from runner.config.run_dir import RunDir
from runner.config.run_spec import RunSpec
from runner.config.store import StoredSpec
from runner.runs import attempt
from runner.runs.new_run import claim_for

__all__ = ["train_stored"]


def train_stored(stored: StoredSpec, spec: RunSpec, *, command: list[str], at_end: attempt.AtEnd) -> RunDir:
    """Train a declaration that was stored before, and wait for its end. Says on stderr what it is about to do.

    Args:
        stored: the declaration.
        spec: what it declares, checked.
        command: what provenance.json records as the command line.
        at_end: called with the run's directory when the attempt has ended, unless it did not begin.

    Returns:
        The run's directory.

    Raises:
        SpecError: the directory cannot be made.
        RunFailed: a rank failed.
        Interrupted: a signal ended the run.
    """
    outline = Outline.of(spec, recipe=stored.source.recipe, choices=dict(stored.source.choices))
    print(outline, file=sys.stderr, flush=True)
    with ExitStack() as cleanup:
        # Of several machines, one makes the directory, once they have met.
        claimed = claim_for(outline, cleanup) if outline.nodes == 1 else None

        def freeze(lock: attempt.Lock) -> Path:
            run_dir = RunDir(claimed or claim_for(outline, cleanup))
            lock(run_dir)
            path = attempt.begin(run_dir, stored, spec, command=command)
            cleanup.pop_all()  # from here on the directory stays, however the attempt ends
            return path

        return RunDir(attempt.run(spec, freeze, at_end=at_end))
