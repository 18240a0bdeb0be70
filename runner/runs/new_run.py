"""The directory of a new run: made, told, and removed again if the run does not begin in it."""

import contextlib
import itertools
import shutil
import sys
from contextlib import ExitStack
from pathlib import Path

from runner.composition.outline import Outline
from runner.config.claim import claim, claim_named
from runner.config.named_path import exists

__all__ = ["claim_for"]


def claim_for(outline: Outline, cleanup: ExitStack) -> Path:
    """Make the run's directory and say where it is.

    Args:
        cleanup: gets the removal of what was made, in case the attempt does not begin.

    Raises:
        SpecError: it cannot be made.
    """
    base = Path.cwd() / (Path("outputs") / outline.name if outline.directory is None else outline.directory)
    there = next(path for path in (base, *base.parents) if exists(path))
    claimed = claim(base, key="run.dir") if outline.directory is None else claim_named(base, key="run.dir")
    cleanup.callback(_remove, claimed, below=there)
    print(f"directory: {claimed}", file=sys.stderr, flush=True)
    return claimed


def _remove(directory: Path, *, below: Path) -> None:
    """Remove a directory that this process made, and those above it that are empty then, up to one that stays."""
    shutil.rmtree(directory, ignore_errors=True)
    with contextlib.suppress(OSError):  # another run has begun in one of them
        for path in itertools.takewhile(lambda path: path != below, directory.parents):
            path.rmdir()
