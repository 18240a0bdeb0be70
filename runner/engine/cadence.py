"""Which step boundaries matter, so that the steps between them cost nothing but themselves."""

import time
from dataclasses import dataclass
from typing import final

from runner.config.run_spec import RunSpec
from runner.protocols import World

POLL_S = 1.0
"""About how often ranks agree on requests from outside: a stop request, a checkpoint by the clock."""


@dataclass(frozen=True, kw_only=True)
class Requests:
    """What the ranks agreed on."""

    polled: bool = False
    """Whether they were asked at all."""
    stop: bool = False
    save: bool = False


NONE = Requests()


@final
class Cadence:
    """The cadences of one attempt, all in optimizer steps."""

    def __init__(self, spec: RunSpec, *, start: int) -> None:
        self.end = min(spec.run.steps, spec.run.stop_at_step or spec.run.steps)
        self._steps = spec.run.steps
        self._log = spec.log.every_steps
        self._eval = spec.eval.every_steps
        self._eval_at_end = spec.eval.at_end
        self._save = spec.checkpoint.every_steps
        self.saves_at_end = spec.checkpoint.at_end
        self._save_every_s = 60 * spec.checkpoint.every_minutes if spec.checkpoint.every_minutes else None
        self._saved = time.monotonic()
        self._polled = time.monotonic()
        self._poll_from = start
        self._poll_at = start + 1

    def next_after(self, step: int) -> int:
        """The nearest later step after which something is due."""
        cadences = (self._log, self._eval, self._save)
        due = [step - step % every + every for every in cadences if every]
        return min(*due, self._poll_at, self.end)

    def logs(self, step: int) -> bool:
        """Whether this step is recorded; the last one always is."""
        return step % self._log == 0 or step == self.end

    def evaluates(self, step: int) -> bool:
        """Whether an evaluation follows this step."""
        return bool(self._eval and step % self._eval == 0) or (self._eval_at_end and step == self._steps)

    def saves(self, step: int) -> bool:
        """Whether a checkpoint follows this step."""
        return bool(self._save and step % self._save == 0) or (self.saves_at_end and step == self.end)

    def saved(self) -> None:
        """A checkpoint was committed: the clock of `every_minutes` begins anew."""
        self._saved = time.monotonic()

    def poll(self, step: int, world: World, *, stop: bool) -> Requests:
        """Agree with the other ranks, if it is time to. Collective at steps that all ranks know.

        The next poll lies about POLL_S ahead by rank 0's clock. So a wish waits a second at most, or one step where a
        step takes longer; and steps in between pay nothing for it.
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
