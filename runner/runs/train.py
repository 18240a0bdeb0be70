"""Trains a recipe: compose, check, claim a directory, freeze, launch."""

import contextlib
import itertools
import shutil
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from runner.composition.fork import composing
from runner.composition.outline import Outline
from runner.composition.recipe import Recipe
from runner.config.claim import claim, claim_named
from runner.config.run_dir import RunDir

if TYPE_CHECKING:
    from runner.runs.attempt import AtEnd, Lock

__all__ = ["train"]


def train(
    recipe: Recipe, overrides: Sequence[str], *, config_dirs: Sequence[Path] = (), command: list[str], at_end: "AtEnd"
) -> None:
    """Train a recipe and wait for its end. Says on stderr what it is about to do. Main thread only.

    Args:
        overrides: in Hydra's grammar.
        config_dirs: searched for groups after all others.
        command: what provenance.json records as the command line.
        at_end: called with the run's directory when the attempt has ended, unless it did not begin.

    Raises:
        SpecError: the declaration has faults.
        RunFailed: a rank failed.
        Interrupted: a signal ended the run.
    """
    with ExitStack() as cleanup:
        with composing(recipe, overrides, config_dirs=config_dirs) as (composed, outline):
            _tell(str(outline))
            # Of several machines, one makes the directory, once they have met.
            claimed = _claim(outline, cleanup) if outline.nodes == 1 else None
        from runner.runs import attempt  # not needed to say what the run is about to do

        spec = composed.read()

        def freeze(lock: "Lock") -> Path:
            run_dir = RunDir(claimed or _claim(outline, cleanup))
            lock(run_dir)
            composed.write_hydra_dir(run_dir.path)
            path = attempt.begin(run_dir, composed.stored(), spec, command=command)
            cleanup.pop_all()  # from here on the directory stays, however the attempt ends
            return path

        attempt.run(spec, freeze, at_end=at_end)


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _claim(outline: Outline, cleanup: ExitStack) -> Path:
    """Make the run's directory and say where it is.

    Args:
        cleanup: gets the removal of what was made, in case the attempt does not begin.

    Raises:
        SpecError: it cannot be made.
    """
    base = Path.cwd() / (Path("outputs") / outline.name if outline.directory is None else outline.directory)
    there = next(path for path in (base, *base.parents) if _exists(path))
    claimed = claim(base, key="run.dir") if outline.directory is None else claim_named(base, key="run.dir")
    cleanup.callback(_remove, claimed, below=there)
    _tell(f"directory: {claimed}")
    return claimed


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # no directory can have such a name, which claiming it will tell
        return False


def _remove(directory: Path, *, below: Path) -> None:
    """Remove a directory that this process made, and those above it that are empty then, up to one that stays."""
    shutil.rmtree(directory, ignore_errors=True)
    with contextlib.suppress(OSError):  # another run has begun in one of them
        for path in itertools.takewhile(lambda path: path != below, directory.parents):
            path.rmdir()
