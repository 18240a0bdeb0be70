"""The runs of the self-test, and the losses that they had. A run that several checks need takes place once."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple, final

from runner.composition.recipe import Recipe
from runner.config.run_dir import RunDir
from runner.runs.record import RunRecord
from runner.runs.resume import resume
from runner.runs.train import train
from runner.selftest.child import RunError, call

__all__ = ["Bench", "Losses", "Trained"]

RECIPE = Recipe(Path(__file__).parent / "recipes" / "selftest.yaml")
SAVED_AT = 4
"""The step of the checkpoint that runs are continued from."""
Losses = dict[int, float | None]
"""By step; None = not finite."""


@final
class Trained(NamedTuple):
    """A run that was not interrupted."""

    directory: Path
    losses: Losses


@final
class Bench:
    """Makes runs in a directory."""

    def __init__(self, directory: Path, *, timeout_s: float) -> None:
        self._directory = directory
        self._timeout_s = timeout_s
        self._count = 0
        self._trained: dict[tuple[str, ...], Trained | RunError] = {}

    def trained(self, *overrides: str, forks: bool) -> Trained:
        """The run with these overrides; the same ones again give the same run.

        Args:
            forks: whether its devices allow ranks to be forked.

        Raises:
            RunError: it failed, now or before.
        """
        if overrides not in self._trained:
            self._trained[overrides] = self._train(overrides, forks=forks)
        found = self._trained[overrides]
        if isinstance(found, RunError):
            raise found
        return found

    def resumed(self, run: Trained, overrides: Sequence[str], *, forks: bool) -> Losses:
        """The losses of a run that is continued from SAVED_AT, in its own directory.

        Raises:
            RunError: it failed.
        """
        there, start = RunDir(run.directory), f"step_{SAVED_AT}"
        self._call(partial(resume, there, list(overrides), start=start, command=[], at_end=_ignore), forks=forks)
        return _losses(run.directory)

    def _train(self, overrides: tuple[str, ...], *, forks: bool) -> Trained | RunError:
        run = self._directory / f"run_{self._count}"
        words = [*overrides, f"run.dir={run}"]
        try:
            self._call(partial(train, RECIPE, words, command=[], at_end=_ignore), forks=forks)
        except RunError as failed:
            return failed
        return Trained(run, _losses(run))

    def _call(self, function: "partial[None]", *, forks: bool) -> None:
        log = self._directory / f"log_{self._count}.txt"
        self._count += 1
        call(function, directory=self._directory, log=log, timeout_s=self._timeout_s, forks=forks)


def _losses(run: Path) -> Losses:
    columns = RunRecord(run).metrics
    pairs = zip(columns.get("step", []), columns.get("train/loss", []), strict=True)
    return {int(step): loss for step, loss in pairs if step is not None}


def _ignore(_directory: Path) -> None:
    """The directory is known already."""
