"""What a job uses without training it: the declaration of a run or of a recipe, and which weights."""

import functools
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, final

from runner.composition.fork import composing
from runner.composition.overrides import apply_overrides
from runner.composition.recipe import Recipe
from runner.config import store
from runner.config.run_dir import RunDir
from runner.config.run_spec import RunSpec
from runner.runs.approval import approve
from runner.runs.trust import require_trust

__all__ = ["Declared", "Source", "declaration"]


@final
@dataclass(frozen=True, kw_only=True)
class Source:
    """What the person who starts a job says of it, whatever the job does."""

    of: RunDir | Recipe
    """A run's directory; or a recipe, whose model is used as its hook makes it, unless `weights` are given."""
    overrides: Sequence[str] = ()
    """In Hydra's grammar; strategy, hardware, metrics and data may all change."""
    config_dirs: Sequence[Path] = ()
    """For a recipe, directories that are searched for groups after all others."""
    step: int | None = None
    """For a run, which checkpoint; None = the newest."""
    best: bool = False
    """For a run, the best checkpoint by checkpoint.metric instead."""
    weights: Path | None = None
    """Exported weights instead: a directory, or a .safetensors file."""
    trust: bool = False
    """Accept a run that did not begin on this account, or a recipe that is not the person's own."""


class Declared(NamedTuple):
    """A declaration, as it is stored and as it is read."""

    stored: store.StoredSpec
    spec: RunSpec


def declaration(source: Source, *, verb: str) -> Declared:
    """The declaration of a recipe, or of a run's newest attempt, with overrides.

    Args:
        verb: which is about to run it.

    Raises:
        SpecError: it has faults; the run did not begin on this account, or the recipe is not the person's own.
    """
    return _of_run(source.of, source, verb=verb) if isinstance(source.of, RunDir) else _of_recipe(source.of, source)


def _of_run(run_dir: RunDir, source: Source, *, verb: str) -> Declared:
    path, stored = store.load_newest(run_dir)
    require_trust(path, trust=source.trust, verb=verb)
    changed = apply_overrides(stored, source.overrides)
    return Declared(changed.stored, changed.read())


def _of_recipe(recipe: Recipe, source: Source) -> Declared:
    approving = functools.partial(approve, trust=source.trust)
    with composing(recipe, source.overrides, config_dirs=source.config_dirs, approve=approving) as (composed, _):
        for line in composed.left_out:
            print(line, file=sys.stderr, flush=True)
    return Declared(composed.stored(), composed.read())
