"""Finds the first step that was not finite, by repeating and checking every step since the last checkpoint.

So the steps of a run need not be watched while they are taken (law 8), and the step that made the weights non-finite is
seen with weights that are still finite. The order of items is a pure function of the position and generators are part
of a checkpoint, so a repeated step gives the same numbers.
"""

import logging

from runner.data.source import plan_at
from runner.engine.build import build_training
from runner.engine.non_finite.diagnose import Finding, diagnose
from runner.engine.non_finite.guard import is_finite
from runner.engine.session import Session, restore_latest
from runner.engine.turns import turns_of
from runner.errors import NonFiniteError
from runner.world.seeds import load_rng_state, rng_state

logger = logging.getLogger(__name__)

WAY_OUT = (
    "Look at that micro-batch and that module; lower optimizer.lr or set clip.norm if the weights grew too large. "
    "guard.non_finite=skip skips such steps, ignore applies them."
)


def explain(session: Session, seen: int) -> NonFiniteError:
    """The error for step `seen`, just taken or skipped. Collective; the session cannot be used afterwards."""
    start = _rewind(session)
    logger.warning("step %d is not finite: repeating steps %d to %d to find the origin", seen, start + 1, seen)
    phase, findings = _replay(session, until=seen)
    step = session.training.step + 1
    if not findings:
        return NonFiniteError(
            f"the loss or the gradient of step {seen} is not finite, but it was when steps {start + 1} to {seen} were "
            "repeated: the run is not deterministic. Use run.deterministic=true to make it so, or "
            "guard.non_finite=skip to skip such steps."
        )
    if session.world.is_main:
        session.run_dir.note_guard(step, [finding._asdict() for finding in findings])
    first = findings[0]
    more = f" ({len(findings)} micro-batches are not; {session.run_dir.guard.name} lists all)" if findings[1:] else ""
    where = f"step {step} is not finite" + (f" in phase {phase}" if phase else "")
    return NonFiniteError(f"{where}{more}. On {first}. {WAY_OUT}")


def _rewind(session: Session) -> int:
    """Go back to the newest checkpoint, or to step 0 if there is none; returns the step. Collective."""
    session.checkpointer.wait()
    if not restore_latest(session.training, session.checkpoints):
        session.training.listeners.fail(session)  # the run is over; the new listeners will not be started
        session.training.forget()  # room for its successor
        session.training = build_training(session.spec, session.run_dir, session.data, session.world, session.ranks)
    return session.training.step


def _replay(session: Session, *, until: int) -> tuple[str, list[Finding]]:
    """Repeat steps until one is not finite, and diagnose it; training is then at the step before.

    Returns:
        The phase of that step, if it has several, and what was found in it.
    """
    training, world = session.training, session.world
    scaled = session.spec.precision.scaler().scales
    steps = iter(training.source)
    while training.step < until:
        position = training.source.position
        batches = next(steps)
        stepped = False
        for phase, trainable, own in turns_of(training, batches):
            generators = rng_state(world.device)
            loss = trainable.forward_backward(own)
            if not is_finite(trainable, loss, world, scaled=scaled):
                trainable.discard()
                load_rng_state(generators, world.device)
                return phase, diagnose(trainable, own, plan_at(training.source, position), world)
            stepped = trainable.update(measure=False).stepped or stepped
        if stepped:
            training.advance()
    return "", []
