"""The run: steps, and what happens between them."""

import gc
import logging
from collections.abc import Iterator
from functools import partial

from runner.config.run_dir import RunDir
from runner.config.run_spec import RunSpec
from runner.engine.build import build, open_records
from runner.engine.cadence import Cadence
from runner.engine.evaluate import evaluate
from runner.engine.measure import step_values
from runner.engine.non_finite.replay import explain
from runner.engine.restore import callback_tensors, restore, whole_state
from runner.engine.session import Session, Stopping
from runner.protocols import Outcome, StepBatches, StepLoss, World
from runner.world.seeds import nondeterminism_named

logger = logging.getLogger(__name__)


def begin(spec: RunSpec, run_dir: RunDir, world: World, stopping: Stopping) -> Session:
    """Build, and continue from the newest commit if there is one. Collective."""
    session = build(spec, run_dir, world, stopping)
    checkpoint = session.checkpointer.latest()
    if checkpoint is not None:
        restore(session, checkpoint)
        logger.info("continuing after step %d from %s", session.step, checkpoint.name)
    callback_tensors(session)  # what a callback cannot work with, it says now
    open_records(session)
    gc.freeze()  # what was imported and built so far lives as long as the run: no collection needs to look at it again
    return session


def finish(session: Session) -> None:
    """Train to the attempt's end and leave the run's directory in a final state. Collective."""
    try:
        session.listeners.start(session, session.checkpointer)
        with nondeterminism_named():
            outcome = Outcome(train(session))
        session.checkpointer.close()
        session.listeners.look_for_save(session, session.checkpointer)
        session.listeners.end(session, outcome)
    except BaseException:
        session.listeners.fail(session)
        session.close(Outcome.FAILED)
        raise
    session.close(outcome)
    session.write_status(outcome.value)


def train(session: Session) -> str:
    """Steps until the attempt's end, a callback's word or a wish from outside.

    Between two boundaries at which something is due there is nothing but steps.

    Returns:
        The state that the run is left in: done or preempted.
    """
    cadence = Cadence(session.spec, start=session.step)
    steps = iter(session.stream)
    while session.step < cadence.end:
        boundary = cadence.next_after(session.step)
        _take_quietly(session, steps, until=boundary - 1)
        lr = session.trainable.optimizer.param_groups[0]["lr"]
        logs, looks = cadence.logs(boundary), session.guard.looks
        loss, update = session.take_step(next(steps), measure=logs or looks)
        if not update.stepped:
            _look_into_skipped(session, loss)
            continue
        values = step_values(loss, update, lr=lr, world=session.world) if logs or looks else {}
        if logs:
            _log(session, values)
        if session.guard.suspects(values, loss, session.world):
            raise explain(session, session.step)
        verdict = _evaluate(session) if cadence.evaluates(session.step) else ""
        requests = cadence.poll(session.step, session.world, stop=session.stopping.requested)
        if cadence.saves(session.step) or requests.save or (cadence.saves_at_end and (verdict or requests.stop)):
            session.checkpointer.save(whole_state(session), progress=session.progress, metrics=session.metrics)
            cadence.saved()
            session.listeners.look_for_save(session, session.checkpointer)
        if requests.stop and session.step < cadence.end:
            logger.warning("asked to stop after step %d", session.step)
            return "preempted"
        if verdict:
            logger.info("ended after step %d: %s", session.step, verdict)
            return "done"
        if requests.polled:
            session.checkpointer.poll(partial(whole_state, session))
            session.listeners.look_for_save(session, session.checkpointer)
            session.write_status("running")
    return "done"


def _take_quietly(session: Session, steps: Iterator[StepBatches], *, until: int) -> None:
    """Steps after which nothing is due."""
    while session.step < until:
        loss, update = session.take_step(next(steps), measure=False)
        if not update.stepped:
            _look_into_skipped(session, loss)


def _look_into_skipped(session: Session, loss: StepLoss) -> None:
    """A step left out by the precision, whose weights will never show it: did it overflow, or was it spoilt before?

    Raises:
        HookError: it was spoilt.
    """
    if session.guard.suspects({}, loss, session.world):
        raise explain(session, session.step + 1)


def _log(session: Session, values: dict[str, float]) -> None:
    if session.left_out:
        values["guard/skipped_steps"] = session.left_out
    session.record(values)
    session.console.log(session.step, values, session.throughput.items_per_s(session.stream.position))


def _evaluate(session: Session) -> str:
    """Evaluate, tell everyone, and return why a callback wants to end the run, or nothing."""
    if session.data.eval is None:
        return ""
    with session.listeners.around_eval(session):
        metrics = evaluate(session)
    session.record(metrics)
    session.console.evaluated(session.step, metrics)
    verdict = session.listeners.evaluated(session, metrics)
    session.throughput.restart(session.stream.position)
    return verdict
