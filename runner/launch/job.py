"""What a submitted job runs on its machine: `python -m runner.launch.job SPEC`, where SPEC is a frozen declaration.

It runs all ranks of the run here, handles signals, writes the final state into the run's directory, and leaves with the
exit code of `runner train`. SIGTERM makes it save a checkpoint and stop; so do SIGINT, SIGHUP, SIGUSR1 and SIGUSR2.
"""

import os
import sys
from pathlib import Path

from runner import terminal
from runner.config import store
from runner.config.run_dir import RunDir
from runner.config.run_lock import hold
from runner.errors import Interrupted, RunnerError
from runner.launch import single_node
from runner.launch.outcome import final_state
from runner.launch.supervision import Supervision

SUBMITTED_S = 10.0
"""How long the command that submitted the job may keep the run's lock after the job has started."""


def run(spec_path: Path, supervision: Supervision) -> None:
    """Run all ranks of a frozen declaration on this machine, whatever launcher submitted it. Main thread only.

    Raises:
        RunFailed: a rank failed and no restart is left.
        Interrupted: a signal ended the run.
        LaunchError: another attempt at the run is under way.
        RunnerError: the file is not a spec file.
    """
    run_dir = RunDir(spec_path.parent)
    with hold(run_dir, patience_s=SUBMITTED_S), final_state(run_dir):
        single_node.run(spec_path, store.read(spec_path), supervision)


def main() -> int:
    """Run the spec named on the command line and return the exit code."""
    terminal.protect()
    try:
        run(Path(sys.argv[1]), Supervision())
    except RunnerError as error:
        print(f"{error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return Interrupted.exit_code
    return 0


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # a finished rank in this process may die at interpreter exit: see runner/launch/rank.py
