"""Decides after which steps something is due, so that the steps in between have no overhead."""

import time
from dataclasses import dataclass
from typing import final

from runner.config.run_spec import RunSpec
from runner.protocols import World

POLL_S = 1.0
"""About how often ranks agree on requests: to stop, or to save a checkpoint by the clock."""


@dataclass(frozen=True, kw_only=True)
class Requests:
    """The requests that all ranks agreed on."""

    polled: bool = False
    """Whether the ranks polled for requests at this step."""
    stop: bool = False
    save: bool = False


NONE = Requests()


@final
class Cadence:
    """Intervals of logging, evaluation and saving in one attempt, in optimizer steps."""

    def __init__(self, spec: RunSpec, *, start: int) -> None:
        self.end = min(spec.run.steps, spec.run.stop_at_step or spec.run.steps)
        self._steps = spec.run.steps
        self._log = spec.log.every_steps
        self._eval = spec.eval
        self._eval_cadences = spec.eval.cadences
        self.evaluates_first = spec.eval.at_start and start == 0
        self._eval_at_end = spec.eval.at_end
        self._save = spec.checkpoint.every_steps
        self.saves_at_end = spec.checkpoint.at_end
        self._save_every_s = 60 * spec.checkpoint.every_minutes if spec.checkpoint.every_minutes else None
        self._saved = time.monotonic()
        self._polled = time.monotonic()
        self._poll_from = start
        self._poll_at = start + 1

    def next_after(self, step: int) -> int:
        """The next step after which something is due."""
        cadences = (self._log, self._save, *self._eval_cadences)
        due = [step - step % every + every for every in cadences if every]
        return min(*due, self._poll_at, self.end)

    def logs(self, step: int) -> bool:
        """Whether this step is logged; the last one always is."""
        return step % self._log == 0 or step == self.end

    def evaluates(self, step: int) -> bool:
        """Whether an evaluation of any set follows this step."""
        return any(step % every == 0 for every in self._eval_cadences) or (self._eval_at_end and step == self._steps)

    def evaluates_set(self, name: str, step: int) -> bool:
        """Whether an evaluation of this set is among those that follow this step, or precede the first one."""
        every = self._eval.every_steps_of(name)
        return step == 0 or bool(every and step % every == 0) or (self._eval_at_end and step == self._steps)

    def saves(self, step: int) -> bool:
        """Whether a checkpoint follows this step."""
        return bool(self._save and step % self._save == 0) or (self.saves_at_end and step == self.end)

    def saved(self) -> None:
        """Restart the clock of `every_minutes`, after a save."""
        self._saved = time.monotonic()

    def poll(self, step: int, world: World, *, stop: bool) -> Requests:
        """Agree on requests with the other ranks if a poll is due. Collective; due at the same steps on all ranks.

        The next poll is about POLL_S ahead by rank 0's clock. So a request waits for a second at most, or for one step
        if steps take longer, and the steps in between have no overhead.
        """
        if step < self._poll_at:
            return NONE
        now = time.monotonic()
        due = self._save_every_s is not None and now - self._saved >= self._save_every_s
        ahead = int(POLL_S * max(1, step - self._poll_from) / max(1e-9, now - self._polled))
        votes = world.gather_objects((stop, due, ahead))
        self._poll_from, self._polled = step, now
        _, save, ahead = votes[0]
        self._poll_at = step + max(1, ahead)
        return Requests(polled=True, stop=any(vote[0] for vote in votes), save=save)
