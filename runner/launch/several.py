"""Several ranks, all on this machine."""

from pathlib import Path

from runner.config.run_dir import RunDir
from runner.launch.agent import Outcome, supervise
from runner.launch.ending import failed, settle, stopped
from runner.launch.failures import find_cause
from runner.launch.rendezvous import Alone, Rendezvous
from runner.launch.supervision import Supervision


def run(
    spec_path: Path, supervision: Supervision, *, processes: int, fork: bool, worker: str = "runner.worker"
) -> None:
    """Start the ranks and wait until they are done.

    Args:
        spec_path: the frozen declaration, in its run's directory.
        supervision: restarts and times.
        processes: how many ranks.
        fork: they may be forked from this process, if that is safe.
        worker: the module whose `main(spec_path)` is a rank.

    Raises:
        RunFailed: a rank failed and no restart is left.
        Interrupted: a signal ended the run.
    """
    outcome = supervise(
        spec_path,
        supervision,
        processes=processes,
        fork=fork,
        meet=lambda is_over: Rendezvous(Alone(), is_over=is_over),
        worker=worker,
    )
    _end(RunDir(spec_path.parent), outcome)


def _end(run_dir: RunDir, outcome: Outcome) -> None:
    """Return if the run is done, raise what it ended with if not."""
    if outcome.succeeded:
        return settle(run_dir)
    if outcome.asked:
        raise stopped(run_dir, since_ns=outcome.started_ns)
    cause = find_cause(run_dir, since_ns=outcome.started_ns, exit_codes=outcome.exit_codes)
    raise failed(run_dir, cause.after(outcome.num_restarts), error=cause.error)
