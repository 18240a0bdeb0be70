"""All ranks of a run in processes of their own, on this machine."""

from collections.abc import Sequence
from pathlib import Path

from runner.config.run_dir import RunDir
from runner.launch.agent import supervise
from runner.launch.failures import find_cause
from runner.launch.node_group import SingleNode
from runner.launch.outcome import Outcome, check_done, failed, stopped_by_signal
from runner.launch.rendezvous import Rendezvous
from runner.launch.supervision import Supervision


def run(
    spec_path: Path,
    supervision: Supervision,
    *,
    processes: int,
    timeout_s: float,
    fork: bool,
    preload: Sequence[str] = (),
    worker: str = "runner.worker",
) -> None:
    """Start the ranks and wait until they are done.

    Args:
        spec_path: the frozen declaration, in its run's directory.
        supervision: restarts and timeouts.
        processes: how many ranks.
        timeout_s: how long a rank may make no progress.
        fork: fork the ranks from this process; otherwise each is a new interpreter.
        preload: modules that every rank needs, imported once before the fork.
        worker: the module whose `work(spec_path, stopping, activity)` is a rank.

    Raises:
        RunFailed: a rank failed and no restart is left.
        Interrupted: a signal ended the run.
    """
    outcome = supervise(
        spec_path,
        supervision,
        processes=processes,
        timeout_s=timeout_s,
        fork=fork,
        preload=preload,
        rendezvous=lambda stop_requested: Rendezvous(SingleNode(), stop_requested=stop_requested),
        worker=worker,
    )
    _raise_unless_done(RunDir(spec_path.parent), outcome)


def _raise_unless_done(run_dir: RunDir, outcome: Outcome) -> None:
    if outcome.succeeded:
        return check_done(run_dir)
    if outcome.stop_requested:
        raise stopped_by_signal(run_dir, outcome)
    cause = find_cause(run_dir, start=outcome.start, exit_codes=outcome.exit_codes, unwritten=outcome.unwritten)
    raise failed(run_dir, cause.after(outcome.num_restarts), error=cause.error)
