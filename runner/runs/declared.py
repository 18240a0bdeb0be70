"""A declaration that a job uses without training it: that of a run, or of a recipe, with overrides."""

import functools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from runner.composition.fork import composing
from runner.composition.overrides import apply_overrides
from runner.composition.recipe import Recipe
from runner.config import store
from runner.config.run_dir import RunDir
from runner.config.run_spec import RunSpec
from runner.runs.approval import approve
from runner.runs.trust import require_trust

__all__ = ["Declared", "of_recipe", "of_run"]


class Declared(NamedTuple):
    """A declaration, as it is stored and as it is read."""

    stored: store.StoredSpec
    spec: RunSpec


def of_run(run_dir: RunDir, overrides: Sequence[str], *, trust: bool, verb: str) -> Declared:
    """The declaration of a run's newest attempt, with overrides.

    Raises:
        SpecError: the run did not begin on this account, or an override cannot be applied.
    """
    path, stored = store.load_newest(run_dir)
    require_trust(path, trust=trust, verb=verb)
    changed = apply_overrides(stored, overrides)
    return Declared(changed.stored, changed.read())


def of_recipe(recipe: Recipe, overrides: Sequence[str], *, config_dirs: Sequence[Path] = (), trust: bool) -> Declared:
    """The declaration of a recipe.

    Raises:
        SpecError: it has faults, or is not the person's own.
    """
    approving = functools.partial(approve, trust=trust)
    with composing(recipe, overrides, config_dirs=config_dirs, approve=approving) as (composed, _):
        for line in composed.left_out:
            print(line, file=sys.stderr, flush=True)
    return Declared(composed.stored(), composed.read())
