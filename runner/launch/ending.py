"""How a launch ends: what status.json says at last, and what is raised."""

from runner.config.run_dir import RunDir
from runner.errors import Interrupted, RunFailed
from runner.launch.failures import read_failures


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


def stopped(run_dir: RunDir, *, since_ns: int) -> Interrupted:
    """A signal ended the launch; what ranks left behind while they stopped is told along."""
    left = read_failures(run_dir, since_ns=since_ns)
    return interrupted(run_dir, f"While stopping, {left[0]}" if left else "")


def interrupted(run_dir: RunDir, note: str = "") -> Interrupted:
    """The run was asked to stop; where it stands and how to go on."""
    step = _end_as(run_dir, "preempted")
    told = f"interrupted; step {step} is the last on record. {_how_to_go_on(run_dir)}"
    return Interrupted(f"{told}\n{note}" if note else told)


def failed(run_dir: RunDir, told: str, *, error: str = "") -> RunFailed:
    """The run failed: what is known, where to look, and the exit code of `error`, the class that a rank raised."""
    _end_as(run_dir, "failed")
    return RunFailed(f"{told}\n\nlogs: {run_dir.logs}\n{_how_to_go_on(run_dir)}", cause=error)


def _how_to_go_on(run_dir: RunDir) -> str:
    has_commit = any(run_dir.checkpoints.glob("step_*"))
    where = "continues from the last commit" if has_commit else "begins anew, since nothing is committed yet"
    return f"The next attempt {where}: runner resume {run_dir.path}"


def _end_as(run_dir: RunDir, state: str) -> int:
    """Step and metrics stay the last known."""
    status = run_dir.read_status()
    run_dir.write_status(state, step=status["step"], metrics=status["metrics"])
    return int(status["step"])
