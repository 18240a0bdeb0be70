"""The run: steps, and what happens between them."""

import logging
from collections.abc import Iterator

from runner.data.source import endless
from runner.engine.cadence import Cadence
from runner.engine.evaluate import evaluate
from runner.engine.measure import step_values
from runner.engine.non_finite.replay import explain
from runner.engine.session import Session
from runner.protocols import Outcome, StepBatches, StepLoss

logger = logging.getLogger(__name__)


def train(session: Session) -> Outcome:
    """Steps until the attempt's end, a callback's verdict or a request from outside.

    Between two boundaries at which something is due there is nothing but steps.

    Returns:
        Done or preempted.
    """
    training = session.training
    cadence = Cadence(session.spec, start=training.step)
    steps = endless(training.source)
    while training.step < cadence.end:
        boundary = cadence.next_after(training.step)
        _take_steps(session, steps, until=boundary - 1)
        rates = learning_rates(session)
        logs, looks = cadence.logs(boundary), session.guard.looks
        loss, update = session.take_step(next(steps), measure=logs or looks)
        if not update.stepped:
            _look_into_skipped(session, loss)
            continue
        values = step_values(loss, update, rates=rates, world=session.loss_world) if logs or looks else {}
        if logs:
            _log(session, values)
        if session.guard.suspects(values, loss, session.world):
            raise explain(session, training.step)
        verdict = _evaluate(session) if cadence.evaluates(training.step) else ""
        requests = cadence.poll(training.step, session.world, stop=session.stopping.requested)
        if cadence.saves(training.step) or requests.save or (cadence.saves_at_end and (verdict or requests.stop)):
            session.save()
            cadence.saved()
        if requests.stop and training.step < cadence.end:
            logger.warning("asked to stop after step %d", training.step)
            return Outcome.PREEMPTED
        if verdict:
            logger.info("ended after step %d: %s", training.step, verdict)
            return Outcome.DONE
        if requests.polled:
            session.poll()
    return Outcome.DONE


def _take_steps(session: Session, steps: Iterator[StepBatches], *, until: int) -> None:
    """Steps after which nothing is due."""
    training = session.training
    while training.step < until:
        loss, update = session.take_step(next(steps), measure=False)
        if not update.stepped:
            _look_into_skipped(session, loss)


def _look_into_skipped(session: Session, loss: StepLoss) -> None:
    """A step was left out, and the weights will never show why: did a scaled gradient overflow, or was it not finite?

    Raises:
        NonFiniteError: it was not finite.
    """
    if session.guard.suspects_skipped(loss, session.world):
        raise explain(session, session.training.step + 1)


def learning_rates(session: Session) -> dict[str, float]:
    """The rate of each optimizer's first parameter group, and those of its further groups that differ from it."""
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


def _evaluate(session: Session) -> str:
    """Evaluate, tell everyone, and return why a callback wants to end the run, or nothing."""
    if session.data.eval is None:
        return ""
    training = session.training
    with training.listeners.around_eval(session):
        metrics = evaluate(training.trainable, session.data, session.spec, session.world)
    session.record(metrics)
    session.console.evaluated(training.step, metrics)
    verdict = training.listeners.evaluated(session, metrics)
    session.throughput.restart(training.source.position)
    return verdict
