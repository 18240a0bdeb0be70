"""One attempt at a run on one rank: its spec, what it trains, and what records it."""

import gc
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from runner.config.run_dir import RunDir
from runner.config.run_spec import RunSpec
from runner.engine.build import build_training, open_data, with_fitting_batch
from runner.engine.console import Console, open_console
from runner.engine.evaluate import prefixes
from runner.engine.measure import Throughput
from runner.engine.non_finite.guard import StepGuard, open_guard
from runner.engine.non_finite.skip import diagnose_skipped
from runner.engine.trackers import NoTrackers, OpenTrackers, open_trackers
from runner.engine.training import Training
from runner.engine.turns import take_turns
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
from runner.world.activity import UNREAD, Activity, Phase
from runner.world.hook_ranks import HookRanks
from runner.world.seeds import report_nondeterminism

logger = logging.getLogger(__name__)
SKIPPED = Update(stepped=False)
STEP = Phase.STEP


class Stopping(Protocol):
    """Whether a stop was requested from outside, for instance by a signal."""

    @property
    def requested(self) -> bool:
        """Whether the run should stop. Read at step boundaries."""
        ...


@dataclass(kw_only=True)
class Session:
    """One rank's attempt. Complete once built; `open_session` closes it with its outcome."""

    spec: RunSpec
    run_dir: RunDir
    world: World
    ranks: HookRanks
    """Given to hooks and listeners that ask for them."""
    stopping: Stopping
    activity: Activity
    """Tells the launcher what this rank does."""
    data: Data
    training: Training
    checkpoints: Checkpoints
    """The committed checkpoints, for reading."""
    checkpointer: Checkpointer
    guard: StepGuard
    trackers: OpenTrackers | NoTrackers
    console: Console
    throughput: Throughput = field(default_factory=Throughput)
    num_skipped: int = 0
    """Steps that the guard skipped in this attempt."""
    outcome: Outcome = Outcome.FAILED
    """How the attempt ended; FAILED until it has ended."""

    @property
    def trainable(self) -> Trainable:
        """The models and their optimizers."""
        return self.training.trainable

    @property
    def progress(self) -> Progress:
        """How far the run is."""
        return self.training.progress

    @property
    def eval_prefixes(self) -> list[str]:
        """What the metrics of each evaluation set are called before the last slash."""
        return prefixes(self.data, self.spec)

    @property
    def loss_world(self) -> World:
        """The ranks over which losses are summed."""
        return self.world.along(*self.world.axes.loss)

    def take_step(self, batches: StepBatches, *, measure: bool) -> tuple[StepLoss, Update]:
        """Take one optimizer step and call the listeners of steps."""
        listeners = self.training.listeners
        self.activity.enter(STEP)
        if listeners.around_steps:
            self.checkpointer.finish_copy(after_forward=False)
            with listeners.around_step(self):
                loss, update = self._step(batches, measure=measure)
        else:
            loss, update = self._step(batches, measure=measure)
        if update.stepped and listeners.after_step:
            with self.activity.during(Phase.CALLBACK):
                for after_step in listeners.after_step:
                    after_step(self)
        return loss, update

    def _step(self, batches: StepBatches, *, measure: bool) -> tuple[StepLoss, Update]:
        training = self.training
        if training.turns is not None:
            self.checkpointer.finish_copy(after_forward=False)  # the first of several updates is not the last forward's
            loss, update = take_turns(training, batches, self.guard, self.world, measure=measure)
            if update.stepped:
                training.advance()
            return loss, update
        if training.at_once is not None:
            self.checkpointer.finish_copy(after_forward=False)
            loss, update = training.at_once.take_step(batches, measure=measure)
            training.advance()
            return loss, update
        loss = training.trainable.forward_backward(batches)
        if not self.guard.allows(training.trainable, loss, self.world):
            self.num_skipped += 1
            diagnose_skipped(training, batches, self.world, self.run_dir)
            return loss, SKIPPED
        self.checkpointer.finish_copy(after_forward=True)
        update = training.trainable.update(measure=measure)
        if update.stepped:
            training.advance()
        return loss, update

    def record(self, values: Mapping[str, float]) -> None:
        """Write measurements to metrics.jsonl and every tracker, and keep them as the last known ones."""
        self.training.metrics.update(values)
        self.trackers.log(values)

    def save(self) -> None:
        """Save a checkpoint; with asynchronous saving it is committed later. Collective."""
        training = self.training
        with self.activity.during(Phase.SAVING):
            self.trackers.flush()  # a run that continues from this checkpoint does not write those lines again
            self.checkpointer.save(training.state_dict(), progress=training.progress, metrics=training.metrics)
            training.listeners.look_for_save(self, self.checkpoints.latest)

    def poll(self) -> None:
        """Between saves: check whether a background save has failed or finished. Collective."""
        with self.activity.during(Phase.SAVING):
            self.checkpointer.poll(self.training.state_dict)
            self.training.listeners.look_for_save(self, self.checkpoints.latest)


@contextmanager
def open_session(
    spec: RunSpec, run_dir: RunDir, world: World, stopping: Stopping, activity: Activity = UNREAD
) -> Iterator[Session]:
    """Build a session, restore the newest checkpoint if there is one, and close it with its outcome. Collective.

    Raises:
        HookError, ModelError, DataError: a hook returned something that cannot be trained.
    """
    ranks, data = open_data(spec, world)
    if spec.batch.auto:
        spec = with_fitting_batch(spec, run_dir, data, world)
    checkpoints = Checkpoints(run_dir.checkpoints, world)
    latest = checkpoints.latest()
    training = build_training(spec, run_dir, data, world, ranks, restores=latest is not None)
    checkpointer = spec.checkpoint.open(run_dir.path, world)
    if latest is not None:
        _restore(training, checkpoints, latest)
    training.listeners.tensors(training.trainable)  # a callback that cannot work with these models raises here
    session = Session(
        spec=spec,
        run_dir=run_dir,
        world=world,
        ranks=ranks,
        stopping=stopping,
        activity=activity,
        data=data,
        training=training,
        checkpoints=checkpoints,
        checkpointer=checkpointer,
        guard=open_guard(spec.guard, spec.precision),
        trackers=_trackers(spec, run_dir, training) if world.is_main else NoTrackers(),
        console=open_console(steps=spec.run.steps, start=training.step, is_main=world.is_main),
    )
    if world.is_main:
        run_dir.write_running()
    session.throughput.restart(training.source.position)
    gc.freeze()  # what exists by now lives as long as the run: the garbage collector need not traverse it
    with _closing(session), report_nondeterminism():
        activity.enter(Phase.CALLBACK)
        training.listeners.start(session, checkpoints.latest)
        yield session
        activity.enter(Phase.SAVING)
        checkpointer.wait()
        training.listeners.look_for_save(session, checkpoints.latest)
        training.listeners.end(session, session.outcome)
    if world.is_main:
        run_dir.write_status(session.outcome.value, step=training.step, metrics=training.metrics)


def _trackers(spec: RunSpec, run_dir: RunDir, training: Training) -> OpenTrackers:
    """The trackers of rank 0, which ask the training how far it is."""
    return open_trackers(
        spec,
        run_dir,
        step=training.step,
        now=lambda: (training.step, training.time_s),
    )


def restore_latest(training: Training, checkpoints: Checkpoints) -> bool:
    """Load the newest committed checkpoint; False if there is none. Collective."""
    path = checkpoints.latest()
    if path is not None:
        _restore(training, checkpoints, path)
    return path is not None


def _restore(training: Training, checkpoints: Checkpoints, path: Path) -> None:
    training.load_state_dict(checkpoints.open(path))
    logger.info("continuing after step %d from %s", training.step, path.name)


@contextmanager
def _closing(session: Session) -> Iterator[None]:
    """Close trackers and console with the outcome of the attempt, however it ended."""
    try:
        yield
    except BaseException:
        session.outcome = Outcome.FAILED
        session.training.listeners.fail(session)
        raise
    finally:
        session.trackers.close(session.outcome)
        session.console.close()
