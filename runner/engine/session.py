"""One attempt at a run on one rank: what it was built from, what it trains, and what records it."""

import gc
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

from runner.config.run_dir import RunDir
from runner.config.run_spec import RunSpec
from runner.engine.build import build_training, call_data, fitted
from runner.engine.console import Console, open_console
from runner.engine.measure import Throughput
from runner.engine.non_finite.guard import StepGuard, open_guard
from runner.engine.non_finite.skip import diagnose_skipped
from runner.engine.trackers import NoTrackers, OpenTrackers, open_trackers
from runner.engine.training import Training
from runner.protocols import (
    Checkpointer,
    Data,
    Outcome,
    Progress,
    StepBatches,
    StepLoss,
    Trainable,
    Update,
    World,
)
from runner.storage.checkpoints import Checkpoints
from runner.world.seeds import nondeterminism_named, set_deterministic

logger = logging.getLogger(__name__)
SKIPPED = Update(stepped=False)


class Stopping(Protocol):
    """Whether somebody outside wants the run to end."""

    @property
    def requested(self) -> bool:
        """Read at step boundaries."""
        ...


@dataclass(kw_only=True)
class Session:
    """One rank's attempt. Whole once it is built; `open_session` closes it with its outcome."""

    spec: RunSpec
    run_dir: RunDir
    world: World
    stopping: Stopping
    data: Data
    training: Training
    checkpoints: Checkpoints
    """Those that are committed, for reading."""
    checkpointer: Checkpointer
    guard: StepGuard
    trackers: OpenTrackers | NoTrackers
    console: Console
    throughput: Throughput = field(default_factory=Throughput)
    num_skipped: int = 0
    """Steps that the guard left out in this attempt."""
    outcome: Outcome = Outcome.FAILED
    """How the attempt ended; until it has ended, as if an error had ended it."""

    @property
    def trainable(self) -> Trainable:
        """Models and optimizers."""
        return self.training.trainable

    @property
    def progress(self) -> Progress:
        """Where the run stands."""
        return self.training.progress

    @property
    def loss_world(self) -> World:
        """The ranks over which losses are summed."""
        return self.world.along(*self.world.axes.loss)

    def take_step(self, batches: StepBatches, *, measure: bool) -> tuple[StepLoss, Update]:
        """One optimizer step, with what listens to steps."""
        listeners = self.training.listeners
        if listeners.around_steps:
            with listeners.around_step(self):
                loss, update = self._step(batches, measure=measure)
        else:
            loss, update = self._step(batches, measure=measure)
        if update.stepped:
            for listener in listeners.after_step:
                listener.after_step(self)
        return loss, update

    def _step(self, batches: StepBatches, *, measure: bool) -> tuple[StepLoss, Update]:
        training = self.training
        loss = training.trainable.forward_backward(batches)
        if not self.guard.allows(training.trainable, loss, self.world):
            self.num_skipped += 1
            diagnose_skipped(training, batches, self.world, self.run_dir)
            return loss, SKIPPED
        update = training.trainable.update(measure=measure)
        if update.stepped:
            training.advance()
        return loss, update

    def record(self, values: Mapping[str, float]) -> None:
        """Write measurements to metrics.jsonl and every tracker, and keep them as the last known ones."""
        self.training.metrics.update(values)
        self.trackers.log(values)

    def save(self) -> None:
        """Commit a checkpoint of everything, or begin to. Collective."""
        training = self.training
        self.checkpointer.save(training.state_dict(), progress=training.progress, metrics=training.metrics)
        training.listeners.look_for_save(self, self.checkpoints.latest)

    def poll(self) -> None:
        """Between saves: hear whether one in the background has failed, and say where the run stands. Collective."""
        self.checkpointer.poll(self.training.state_dict)
        self.training.listeners.look_for_save(self, self.checkpoints.latest)
        self.write_status("running")

    def write_status(self, state: str) -> None:
        """Say in the run's directory where the run stands. Only rank 0 writes."""
        if self.world.is_main:
            self.run_dir.write_status(state, step=self.training.step, metrics=self.training.metrics)


@contextmanager
def open_session(spec: RunSpec, run_dir: RunDir, world: World, stopping: Stopping) -> Iterator[Session]:
    """Build, continue from the newest commit if there is one, open what records, close with the outcome. Collective.

    Raises:
        HookError, ModelError, DataError: a hook returned something that cannot be trained.
    """
    if spec.run.deterministic:
        set_deterministic()
    data = call_data(spec, world)
    if spec.batch.auto:
        spec = fitted(spec, run_dir, data, world)
    training = build_training(spec, data, world)
    checkpointer = spec.checkpoint.open(run_dir.path, world)
    checkpoints = Checkpoints(run_dir.checkpoints, world)
    restore_latest(training, checkpoints)
    training.listeners.tensors(training.trainable)  # what a callback cannot work with, it reports now
    trackers: OpenTrackers | NoTrackers = NoTrackers()
    if world.is_main:
        trackers = open_trackers(spec, run_dir, step=training.step, now=lambda: (training.step, training.time_s))
    session = Session(
        spec=spec,
        run_dir=run_dir,
        world=world,
        stopping=stopping,
        data=data,
        training=training,
        checkpoints=checkpoints,
        checkpointer=checkpointer,
        guard=open_guard(spec.guard, spec.precision),
        trackers=trackers,
        console=open_console(steps=spec.run.steps, start=training.step, is_main=world.is_main),
    )
    session.throughput.restart(training.source.position)
    gc.freeze()  # what was imported and built so far lives as long as the run: no collection needs to look at it again
    with _closing(session), nondeterminism_named():
        training.listeners.start(session, checkpoints.latest)
        yield session
        checkpointer.wait()
        training.listeners.look_for_save(session, checkpoints.latest)
        training.listeners.end(session, session.outcome)
    session.write_status(session.outcome.value)


def restore_latest(training: Training, checkpoints: Checkpoints) -> bool:
    """Continue from the newest commit; False if there is none. Collective."""
    path = checkpoints.latest()
    if path is None:
        return False
    training.load_state_dict(checkpoints.open(path))
    logger.info("continuing after step %d from %s", training.step, path.name)
    return True


@contextmanager
def _closing(session: Session) -> Iterator[None]:
    """Let trackers and the console know how the attempt ended, whatever ended it."""
    try:
        yield
    except BaseException:
        session.outcome = Outcome.FAILED
        session.training.listeners.fail(session)
        raise
    finally:
        session.trackers.close(session.outcome)
        session.console.close()
