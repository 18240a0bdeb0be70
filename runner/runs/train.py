"""Trains a recipe: compose, check, claim a directory, freeze, launch."""

import functools
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from runner.composition.fork import composing
from runner.composition.recipe import Recipe
from runner.config.run_dir import RunDir
from runner.runs.approval import approve
from runner.runs.new_run import claim_for

if TYPE_CHECKING:
    from runner.runs.attempt import AtEnd, Lock

__all__ = ["train"]


def train(
    recipe: Recipe,
    overrides: Sequence[str],
    *,
    config_dirs: Sequence[Path] = (),
    trust: bool = False,
    command: list[str],
    at_end: "AtEnd",
) -> None:
    """Train a recipe and wait for its end. Says on stderr what it is about to do. Main thread only.

    Args:
        overrides: in Hydra's grammar.
        config_dirs: searched for groups after all others.
        trust: accept a recipe that is not the person's own.
        command: what provenance.json records as the command line.
        at_end: called with the run's directory when the attempt has ended, unless it did not begin.

    Raises:
        SpecError: the declaration has faults.
        RunFailed: a rank failed.
        Interrupted: a signal ended the run.
    """
    approving = functools.partial(approve, trust=trust)
    with ExitStack() as cleanup:
        with composing(recipe, overrides, config_dirs=config_dirs, approve=approving) as (composed, outline):
            for line in (*composed.left_out, outline):
                print(line, file=sys.stderr, flush=True)
            # Of several machines, one makes the directory, once they have met.
            claimed = claim_for(outline, cleanup) if outline.nodes == 1 else None
        from runner.runs import attempt  # not needed to say what the run is about to do

        spec = composed.read()

        def freeze(lock: "Lock") -> Path:
            run_dir = RunDir(claimed or claim_for(outline, cleanup))
            lock(run_dir)
            composed.write_hydra_dir(run_dir.path)
            path = attempt.begin(run_dir, composed.stored(), spec, command=command)
            cleanup.pop_all()  # from here on the directory stays, however the attempt ends
            return path

        attempt.run(spec, freeze, at_end=at_end)
