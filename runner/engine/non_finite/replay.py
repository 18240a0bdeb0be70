"""A step that was not finite, found again: from the last commit on, every step is taken anew and looked at closely.

So the steps of a run need not be watched while they are taken (law 8), and the one that spoilt the weights is seen with
weights that are not spoilt yet. The order of items is a pure function of the position and the generators are part of a
commit, so the same numbers come again.
"""

import logging

from runner.engine.build import build
from runner.engine.non_finite.diagnose import Finding, diagnose
from runner.engine.non_finite.guard import discard_gradients, is_finite, scales
from runner.engine.restore import restore
from runner.engine.session import Session
from runner.errors import HookError
from runner.world.seeds import load_rng_state, rng_state

logger = logging.getLogger(__name__)

WAY_OUT = (
    "Look at these items and at this module; lower optimizer.lr or set clip.norm if the weights grew too large. "
    "guard.non_finite=skip leaves such steps out, ignore takes them."
)


def explain(session: Session, seen: int) -> HookError:
    """What to raise for step `seen`, just taken or left out. Collective; the session is of no use any more."""
    start = _rewind(session)
    logger.warning("step %d is not finite: taking steps %d to %d again, to see where from", seen, start + 1, seen)
    findings = _replay(session, until=seen)
    step = session.step + 1
    if not findings:
        return HookError(
            f"the loss or the gradient of step {seen} is not finite, but was when steps {start + 1} to {seen} were "
            "taken again: they do not come out alike each time. With run.deterministic=true they do. "
            "guard.non_finite=skip leaves such steps out."
        )
    if session.world.is_main:
        session.run_dir.note_guard(step, [finding._asdict() for finding in findings])
    first = findings[0]
    more = f" ({len(findings)} micro-batches are not; {session.run_dir.guard.name} has all)" if findings[1:] else ""
    return HookError(f"step {step} is not finite{more}. On {first}. {WAY_OUT}")


def _rewind(session: Session) -> int:
    """Back to the newest commit, or to the beginning if there is none."""
    checkpoint = session.checkpointer.latest()
    if checkpoint is not None:
        restore(session, checkpoint)
        return session.step
    session.listeners.fail(session)  # the run cannot go on; those that are built anew have not begun
    del session.trainable, session.schedule  # room for their successors
    fresh = build(session.spec, session.run_dir, session.world, session.stopping)
    session.trainable, session.schedule, session.stream = fresh.trainable, fresh.schedule, fresh.stream
    session.listeners = fresh.listeners
    session.step = 0
    return 0


def _replay(session: Session, *, until: int) -> list[Finding]:
    """Steps until one is not finite. Session.step is then that of the step before."""
    trainable, world = session.trainable, session.world
    scaled = scales(session.spec.precision)
    steps = iter(session.stream)
    while session.step < until:
        position = session.stream.position
        batches = next(steps)
        generators = rng_state(world)
        loss = trainable.forward_backward(batches)
        if world.any(not is_finite(trainable, loss, scaled=scaled)):
            discard_gradients(trainable)
            load_rng_state(generators, world)
            return diagnose(trainable, batches, session.stream.plan_at(position), world)
        if trainable.update(measure=False).stepped:
            session.schedule.step()
            session.step += 1
    return []
