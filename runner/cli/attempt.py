"""One attempt at a run: what is written before it starts, and what its directory says when it ends."""

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from runner.config import provenance, store
from runner.config.run_dir import RunDir
from runner.config.run_spec import RunSpec
from runner.errors import Interrupted, RunnerError
from runner.protocols import Launch

__all__ = ["begin", "run", "run_apart"]


def begin(run_dir: RunDir, stored: store.StoredSpec, spec: RunSpec, *, command: list[str]) -> Path:
    """Freeze the declaration beside those of earlier attempts; what follows reads nothing else.

    Returns:
        The spec file.
    """
    path = run_dir.next_spec()
    status = run_dir.read_status()
    store.save(path, replace(stored, config=dict(spec.config)))
    provenance.record(run_dir.provenance, provenance.describe(spec, command=command))
    run_dir.write_status("running", step=status["step"], metrics=status["metrics"])
    return path


def run(spec: RunSpec, freeze: Callable[[], Path]) -> None:
    """Begin an attempt and see it end; the run's directory is the last line on stdout, however it ended.

    Args:
        spec: what is launched.
        freeze: claims the directory if need be, calls `begin`, and returns the spec file.

    Raises:
        SpecError: the machines were told different things.
        RunFailed: a rank failed.
        LaunchError: a machine did not come.
        Interrupted: a signal ended the run.
    """
    with spec.launch.open(spec) as launch:
        spec_path = launch.begin(freeze)
        try:
            _see_through(launch, spec_path)
        finally:
            sys.stderr.flush()
            print(spec_path.parent, flush=True)


def run_apart(spec_path: str) -> None:
    """What the process of one sweep job does; leaves it with the exit code of `runner train`."""
    path = Path(spec_path)
    try:
        spec = store.read(path)
        with spec.launch.open(spec) as launch:
            _see_through(launch, launch.begin(lambda: path))
    except RunnerError as error:
        print(f"{error}", file=sys.stderr, flush=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(Interrupted.exit_code)


def _see_through(launch: Launch, spec_path: Path) -> None:
    """Start the ranks and wait. However they end, status.json does not stay at `running`."""
    run_dir = RunDir(spec_path.parent)
    try:
        launch.run(spec_path)
    except (Interrupted, KeyboardInterrupt):
        _settle(run_dir, "preempted")
        raise
    except RunnerError:
        _settle(run_dir, "failed")
        raise


def _settle(run_dir: RunDir, state: str) -> None:
    """The last word, if the ranks were in no state to say it themselves."""
    status = run_dir.read_status()
    if status["state"] == "running":
        run_dir.write_status(state, step=status["step"], metrics=status["metrics"])
