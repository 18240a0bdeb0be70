"""How a launch ends: what status.json says at last, and what is raised."""

from runner.errors import Interrupted, RunFailed
from runner.spec.run_dir import RunDir


def settle(run_dir: RunDir) -> None:
    """After every rank returned: nothing if the run is done.

    Raises:
        Interrupted: the ranks were asked to stop.
        RunFailed: they returned without an end; a hook left the process by itself, for example with sys.exit(0).
    """
    state = run_dir.read_status()["state"]
    if state == "preempted":
        raise interrupted(run_dir)
    if state != "done":
        raise failed(run_dir, f"the ranks returned, but {run_dir.status} says {state}. Does a hook call sys.exit?")


def interrupted(run_dir: RunDir, note: str = "") -> Interrupted:
    """The run was asked to stop; where it stands and how to go on."""
    step = _end_as(run_dir, "preempted")
    return Interrupted(
        f"interrupted after step {step}. The next attempt continues from the last commit: runner resume {run_dir.path}"
        + (f"\n{note}" if note else "")
    )


def failed(run_dir: RunDir, cause: str) -> RunFailed:
    """The run failed; the cause first, then where to look."""
    _end_as(run_dir, "failed")
    where = f"logs: {run_dir.logs}\nTo continue from the last commit: runner resume {run_dir.path}"
    return RunFailed(f"{cause}\n\n{where}")


def _end_as(run_dir: RunDir, state: str) -> int:
    """Step and metrics stay the last known."""
    status = run_dir.read_status()
    run_dir.write_status(state, step=status["step"], metrics=status["metrics"])
    return int(status["step"])
