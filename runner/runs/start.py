"""Where a resumed run starts if it has no checkpoint: from step 0 only if none was lost, or if that is asked for."""

from runner.config import provenance
from runner.config.damage import warn
from runner.config.run_dir import RunDir
from runner.errors import CheckpointError, Fault, SpecError
from runner.protocols import Checkpoint

__all__ = ["FROM_0", "check_start"]

FROM_0 = ("0", "step_0")
"""Values of --from that ask for a start from step 0."""


def check_start(run_dir: RunDir, checkpoint: Checkpoint, *, from_0: bool) -> None:
    """Return if the run has a checkpoint to continue from, or may start from step 0, which is then said on stderr.

    A run that has committed a checkpoint notes it in provenance.json, outside the directory of checkpoints.

    Args:
        run_dir: the run's directory.
        checkpoint: how the attempt before was saved.
        from_0: whether a start from step 0 is asked for.

    Raises:
        SpecError: it is, but the run has checkpoints.
        CheckpointError: the run's checkpoints are gone.
    """
    steps = run_dir.committed_steps()
    if steps and from_0:
        there = ", ".join(f"step_{step}" for step in steps)
        rule = f"0 is for a run without checkpoints, but this one has {there}. Choose one of them, or train a new run."
        raise SpecError(Fault(key="--from", message=rule, origin="the command line"))
    if steps:
        return
    lost = "" if from_0 else _evidence(run_dir, checkpoint)
    if lost:
        raise CheckpointError(
            f"the checkpoints of this run are gone: {lost}, but there is none in {run_dir.checkpoints}. Put them back. "
            "To start from step 0 instead, and to drop what metrics.jsonl has: --from 0"
        )
    why = "as --from 0 asks for" if from_0 else "it has not committed a checkpoint yet"
    warn(f"{run_dir.path} starts from step 0: {why}.")


def _evidence(run_dir: RunDir, checkpoint: Checkpoint) -> str:
    """Why there must have been a checkpoint, or may have been; empty if there cannot have been one."""
    committed = provenance.committed(run_dir.provenance)
    if committed:
        return f"{run_dir.provenance.name} says that step_{committed[-1]} was committed"
    step = run_dir.recorded_status()["step"] or run_dir.read_status()["step"]
    saves = checkpoint.every_steps or checkpoint.every_minutes or checkpoint.at_end
    if step and not provenance.read(run_dir.provenance):
        return (
            f"it was at step {step}, and {run_dir.provenance.name}, which would say whether it committed one, is lost"
        )
    if step and saves and not run_dir.checkpoints.is_dir():
        return f"it was at step {step}, and saved checkpoints"
    return ""
