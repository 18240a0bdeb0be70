"""Trains a run again from its record: a new run with the declaration of another one, and overrides."""

import argparse
from dataclasses import replace
from typing import Any

from runner.cli.arguments import existing_run, override_words
from runner.cli.launched import print_directory
from runner.composition.overrides import apply_overrides
from runner.config import store
from runner.errors import Fault, SpecError
from runner.runs.again import train_stored
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
    train_stored(changed.stored, changed.read(), command=found.command, at_end=print_directory)
    return 0


def _of_a_new_run(stored: store.StoredSpec) -> store.StoredSpec:
    run = stored.config.get("run")
    config = {**stored.config, "run": {**run, **OF_ONE_RUN}} if isinstance(run, dict) else stored.config
    return replace(stored, config=config)
