"""Trains a run again from its record: a new run with the declaration of another one, and overrides."""

import argparse
import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from runner.cli.arguments import existing_run, override_words
from runner.cli.launched import print_directory
from runner.composition.outline import Outline
from runner.composition.overrides import Overridden, apply_overrides
from runner.config import store
from runner.config.read import Rule, read
from runner.config.run_dir import RunDir
from runner.config.run_spec import RunSpec
from runner.errors import Fault, SpecError
from runner.model.check import model_faults
from runner.runs import attempt
from runner.runs.new_run import claim_for
from runner.runs.trust import require_trust

__all__ = ["train_again"]

OF_ONE_RUN: dict[str, Any] = {"dir": None, "stop_at_step": None}
"""Keys of the section `run` that the new run does not take over, and what they become."""


def train_again(found: argparse.Namespace) -> int:
    """Train a new run with the declaration of another one.

    Raises:
        SpecError: the directory is not a run's, or did not begin on this account; or the declaration has faults, now
            that the overrides are applied.
        RunFailed: a rank failed.
        Interrupted: a signal ended the run.
    """
    overrides = override_words(found, prog="runner train --from")
    for flag, given in (("-m", found.multirun), ("--cfg", found.cfg), ("--info", found.info), ("--try", found.try_out)):
        if given:
            rule = "takes a recipe, not the record of a run. Leave it out, or give the recipe instead of --from."
            raise SpecError(Fault(key=flag, message=rule, origin="the command line"))
    path, stored = store.load_newest(existing_run(found.record))
    require_trust(path, trust=found.trust, verb="train --from")
    changed = apply_overrides(_of_a_new_run(stored), overrides)
    draft = _read(changed, check=False)
    source = changed.stored.source
    outline = Outline.of(draft, recipe=source.recipe, choices=dict(source.choices))
    print(outline, file=sys.stderr, flush=True)
    with ExitStack() as cleanup:
        # Of several machines, one makes the directory, once they have met.
        claimed = claim_for(outline, cleanup) if outline.nodes == 1 else None
        spec = _read(changed, check=True, rules=(model_faults,))

        def freeze(lock: attempt.Lock) -> Path:
            run_dir = RunDir(claimed or claim_for(outline, cleanup))
            lock(run_dir)
            begun = attempt.begin(run_dir, changed.stored, spec, command=found.command)
            cleanup.pop_all()  # from here on the directory stays, however the attempt ends
            return begun

        attempt.run(spec, freeze, at_end=print_directory)
    return 0


def _of_a_new_run(stored: store.StoredSpec) -> store.StoredSpec:
    run = stored.config.get("run")
    config = {**stored.config, "run": {**run, **OF_ONE_RUN}} if isinstance(run, dict) else stored.config
    return replace(stored, config=config)


def _read(changed: Overridden, *, check: bool, rules: tuple[Rule, ...] = ()) -> RunSpec:
    return read(
        changed.stored.config,
        import_roots=changed.stored.import_roots,
        origin=changed.origin,
        known_faults=changed.faults,
        check=check,
        rules=rules,
    )
