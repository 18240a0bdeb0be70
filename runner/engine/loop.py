"""The training loop: steps, and what is due between them."""

import logging
from collections.abc import Iterator

from runner.data.passes import Passes
from runner.data.source import endless
from runner.engine.cadence import Cadence
from runner.engine.evaluate import evaluate, evaluation_sets
from runner.engine.measure import step_values
from runner.engine.non_finite.replay import explain
from runner.engine.replicas import mean_weights
from runner.engine.session import Session
from runner.protocols import Outcome, StepBatches, StepLoss
from runner.world.activity import Phase

logger = logging.getLogger(__name__)
DATA = Phase.DATA


def train(session: Session) -> Outcome:
    """Train until the attempt's last step, until a callback ends the run or until a stop is requested.

    Between two boundaries at which something is due, only steps are taken.

    Returns:
        DONE or PREEMPTED.
    """
    training = session.training
    cadence = Cadence(session.spec, start=training.step)
    steps = endless(training.source)
    passes = Passes(session.spec, session.data, session.world)
    if cadence.evaluates_first:
        _evaluate(session, cadence, passes)  # for the record: a run takes a step before a callback may end it
    while training.step < cadence.end:
        boundary = cadence.next_after(training.step)
        _take_steps(session, steps, until=boundary - 1)
        rates = learning_rates(session)
        logs, checks = cadence.logs(boundary), session.guard.needs_values
        session.activity.enter(DATA, training.step + 1)
        loss, update = session.take_step(next(steps), measure=logs or checks)
        if not update.stepped:
            _check_skipped(session, loss)
            continue
        values = step_values(loss, update, rates=rates, world=session.loss_world) if logs or checks else {}
        if logs:
            _log(session, values)
        if session.guard.suspects(values, loss, session.world):
            raise explain(session, training.step)
        verdict = _evaluate(session, cadence, passes) if cadence.evaluates(training.step) else ""
        requests = cadence.poll(training.step, session.world, stop=session.stopping.requested)
        if cadence.saves(training.step) or requests.save or (cadence.saves_at_end and (verdict or requests.stop)):
            session.save()
            cadence.saved()
        if requests.stop and training.step < cadence.end:
            logger.warning("stop requested; stopping after step %d", training.step)
            return Outcome.PREEMPTED
        if verdict:
            logger.info("ended after step %d: %s", training.step, verdict)
            return Outcome.DONE
        if requests.polled:
            session.poll()
    return Outcome.DONE


def _take_steps(session: Session, steps: Iterator[StepBatches], *, until: int) -> None:
    """Take the steps after which nothing is due."""
    training, activity = session.training, session.activity
    while training.step < until:
        activity.enter(DATA, training.step + 1)
        loss, update = session.take_step(next(steps), measure=False)
        if not update.stepped:
            _check_skipped(session, loss)


def _check_skipped(session: Session, loss: StepLoss) -> None:
    """Find out whether a step was skipped because a scaled gradient overflowed, or because it was not finite.

    Raises:
        NonFiniteError: it was not finite.
    """
    if session.guard.suspects_skipped(loss, session.world):
        raise explain(session, session.training.step + 1)


def learning_rates(session: Session) -> dict[str, float]:
    """The learning rate of each optimizer's first parameter group, and of other groups where it differs."""
    rates = {}
    for model, optimizer in session.trainable.optimizers.items():
        prefix = "lr" if len(session.trainable.optimizers) == 1 else f"lr/{model}"
        first, *others = (float(group["lr"]) for group in optimizer.param_groups)
        rates[prefix] = first
        rates |= {f"{prefix}/group_{number}": rate for number, rate in enumerate(others, start=1) if rate != first}
    return rates


def _log(session: Session, values: dict[str, float]) -> None:
    if session.num_skipped:
        values["guard/skipped_steps"] = session.num_skipped
    session.record(values)
    training = session.training
    session.console.log(training.step, values, session.throughput.items_per_s(training.source.position))


def _evaluate(session: Session, cadence: Cadence, passes: Passes) -> str:
    """Evaluate the sets that are due and record their metrics; returns why a callback ends the run, or nothing."""
    training, activity = session.training, session.activity
    every = evaluation_sets(session.data, session.spec)
    due = [one for one in every if cadence.evaluates_set(one.name, training.step)]
    if not due:
        return ""
    session.checkpointer.finish_copy(after_forward=False)
    with training.listeners.around_eval(session), mean_weights(training.trainable, training.replicas):
        metrics = evaluate(training.trainable, due, session.spec, session.world, activity, passes=passes)
    activity.enter(Phase.CALLBACK)
    session.record(metrics)
    session.console.evaluated(training.step, metrics)
    verdict = training.listeners.evaluated(session, metrics)
    activity.enter(Phase.STEP)
    session.throughput.restart(training.source.position)
    return verdict
