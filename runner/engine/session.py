"""Everything that one rank holds while a run goes on."""

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from runner.config.run_dir import RunDir
from runner.config.run_spec import RunSpec
from runner.data.stream import Stream
from runner.engine.console import Console
from runner.engine.listeners import Listeners
from runner.engine.measure import Throughput
from runner.engine.non_finite.diagnose import diagnose
from runner.engine.non_finite.guard import StepGuard, discard_gradients
from runner.engine.trackers import NoTrackers, OpenTrackers
from runner.protocols import (
    Checkpointer,
    Data,
    Outcome,
    Progress,
    Scheduler,
    StepBatches,
    StepLoss,
    Trainable,
    Update,
    World,
)
from runner.world.seeds import load_rng_state, rng_state

logger = logging.getLogger(__name__)
LEFT_OUT = Update(stepped=False)


class Stopping(Protocol):
    """Whether somebody outside wants the run to end."""

    @property
    def requested(self) -> bool:
        """Read at step boundaries."""
        ...


@dataclass(kw_only=True)
class Session:
    """One rank's run: what was built from the spec, and where it stands."""

    spec: RunSpec
    run_dir: RunDir
    world: World
    stopping: Stopping
    data: Data
    stream: Stream
    trainable: Trainable
    schedule: Scheduler
    checkpointer: Checkpointer
    trackers: OpenTrackers | NoTrackers
    listeners: Listeners
    console: Console
    guard: StepGuard
    throughput: Throughput = field(default_factory=Throughput)
    step: int = 0
    """Optimizer steps done."""
    left_out: int = 0
    """Steps that this attempt left out because they were not finite."""
    metrics: dict[str, float] = field(default_factory=dict)
    """The last known value of each."""
    time_before_s: float = 0.0
    """Seconds of training in the attempts that this one continues."""
    started: float = field(default_factory=time.monotonic)

    @property
    def progress(self) -> Progress:
        """Where the run stands."""
        return Progress(step=self.step, position=self.stream.position)

    @property
    def time_s(self) -> float:
        """Seconds of training since the run began."""
        return self.time_before_s + time.monotonic() - self.started

    def take_step(self, batches: StepBatches, *, measure: bool) -> tuple[StepLoss, Update]:
        """One optimizer step."""
        if self.listeners.around_steps:
            with self.listeners.around_step(self):
                loss, update = self._take_step(batches, measure=measure)
        else:
            loss, update = self._take_step(batches, measure=measure)
        if update.stepped:
            for listener in self.listeners.after_step:
                listener.after_step(self)
        return loss, update

    def _take_step(self, batches: StepBatches, *, measure: bool) -> tuple[StepLoss, Update]:
        loss = self.trainable.forward_backward(batches)
        if not self.guard.allows(self.trainable, loss, self.world):
            self._leave_out(batches)
            return loss, LEFT_OUT
        update = self.trainable.update(measure=measure)
        if update.stepped:
            self.schedule.step()
            self.step += 1
        return loss, update

    def _leave_out(self, batches: StepBatches) -> None:
        """A step that is not finite: note where that came from, and go on with the next items."""
        discard_gradients(self.trainable)
        self.left_out += 1
        generators = rng_state(self.world)
        plan = self.stream.plan_at(self.stream.position - batches.items)
        findings = diagnose(self.trainable, batches, plan, self.world)
        load_rng_state(generators, self.world)
        if self.world.is_main:
            self.run_dir.note_guard(self.step + 1, [finding._asdict() for finding in findings])
        where = str(findings[0]) if findings else "taken again, it is finite"
        logger.warning("step %d left out: not finite. On %s", self.step + 1, where)

    def record(self, values: Mapping[str, float]) -> None:
        """Give measurements to every tracker, and keep them as the last known ones."""
        self.metrics.update(values)
        self.trackers.log(values)

    def write_status(self, state: str) -> None:
        """Say in the run's directory where it stands. Rank 0 only writes."""
        if self.world.is_main:
            self.run_dir.write_status(state, step=self.step, metrics=self.metrics)

    def close(self, outcome: Outcome) -> None:
        """Close what records the run, which is told how it ended."""
        self.trackers.close(outcome)
        self.console.close()
