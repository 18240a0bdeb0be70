"""Records in guard.json why a step that the guard skipped was not finite, before training continues."""

import logging

from runner.config.run_dir import RunDir
from runner.data.source import plan_at
from runner.engine.non_finite.diagnose import diagnose
from runner.engine.training import Training
from runner.protocols import StepBatches, World
from runner.world.seeds import load_rng_state, rng_state

logger = logging.getLogger(__name__)


def diagnose_skipped(training: Training, batches: StepBatches, world: World, run_dir: RunDir) -> None:
    """Repeat the step without an update, and record where it became non-finite. Collective.

    The state of the generators afterwards is as if the step had been taken once.
    """
    generators = rng_state(world.device)
    plan = plan_at(training.source, training.source.position - batches.items)
    findings = diagnose(training.trainable, batches, plan, world)
    load_rng_state(generators, world.device)
    step = training.step + 1
    if world.is_main:
        run_dir.note_guard(step, [finding._asdict() for finding in findings])
    origin = f"On {findings[0]}" if findings else "When repeated, it is finite"
    logger.warning("step %d skipped: not finite. %s", step, origin)
