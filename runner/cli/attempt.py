"""One attempt at a run: what is written before it starts, how it is started, and what the command prints."""

import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from runner.cli.trust import remember
from runner.config import provenance, store
from runner.config.masking import shown_command
from runner.config.run_dir import RunDir
from runner.config.run_spec import RunSpec
from runner.config.secret import Secret
from runner.errors import Interrupted, RunnerError
from runner.launch.outcome import final_state
from runner.protocols import Launch

__all__ = ["begin", "run", "run_sweep_job"]


def run(spec: RunSpec, freeze: Callable[[], Path]) -> None:
    """Start an attempt, and wait for its end unless it was submitted to run elsewhere.

    The run's directory is the last line on stdout, however the attempt ends; the name of a submitted job stands before
    it.

    Args:
        spec: what is launched.
        freeze: claims a directory if need be, calls `begin`, and returns the spec file.

    Raises:
        SpecError: the machines were given different declarations.
        RunFailed: a rank failed, or the job could not be submitted.
        LaunchError: a machine did not join.
        Interrupted: a signal ended the run.
    """
    sys.argv[1:] = shown_command(sys.argv[1:])  # libraries record it, as wandb does among a run's metadata
    with spec.launch.open(spec) as launch:
        spec_path = launch.begin(freeze)
        remember(spec_path)
        try:
            _start(launch, spec_path)
        finally:
            sys.stderr.flush()
            print(spec_path.parent, flush=True)


def begin(run_dir: RunDir, stored: store.StoredSpec, spec: RunSpec, *, command: list[str]) -> Path:
    """Freeze the declaration beside those of earlier attempts; the ranks read nothing else.

    Returns:
        The spec file.
    """
    path = run_dir.next_spec()
    store.save(path, replace(stored, config=dict(spec.config)))
    provenance.record(run_dir.provenance, provenance.describe(spec, command=shown_command(command)))
    run_dir.write_state("queued")
    return path


def _start(launch: Launch, spec_path: Path) -> None:
    with final_state(RunDir(spec_path.parent)):
        job = launch.start(spec_path)
        if job.attached:
            job.wait()
        else:
            print(f"submitted as {job.name}", flush=True)


def run_sweep_job(spec_path: Path, secrets: Mapping[str, Secret]) -> None:
    """Run what a sweep has frozen, in the process of one of its jobs; exits with the exit code of `runner train`."""
    try:
        spec = store.read(spec_path, secrets)
        with spec.launch.open(spec) as launch:
            remember(spec_path)
            _start(launch, launch.begin(lambda: spec_path))
    except RunnerError as error:
        print(f"{error}", file=sys.stderr, flush=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(Interrupted.exit_code)
