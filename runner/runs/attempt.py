"""One attempt at a run: what is written before it starts, how it is started."""

import signal
import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from runner.config import provenance, store
from runner.config.masking import shown_command
from runner.config.run_dir import RunDir
from runner.config.run_lock import hold
from runner.config.run_spec import RunSpec
from runner.config.secret import Secret
from runner.errors import DiskError, Interrupted, RunnerError
from runner.launch.outcome import final_state
from runner.protocols import Launch
from runner.runs.trust import remember, remember_file
from runner.world.stop import ENDING_SIGNALS, held_back

__all__ = ["AtEnd", "Lock", "begin", "run", "run_job"]

AtEnd = Callable[[Path], None]
"""Is told the directory of a run that has begun, when its attempt ends, however it does."""

Lock = Callable[[RunDir], None]
"""Keeps other attempts out of a run's directory until this one has ended."""


def run(spec: RunSpec, freeze: Callable[[Lock], Path], *, at_end: AtEnd) -> Path:
    """Start an attempt, and wait for its end unless it was submitted to run elsewhere.

    The name of a submitted job is printed on stdout.

    Args:
        spec: what is launched.
        freeze: claims a directory if need be, locks it, calls `begin`, and returns the spec file. With several machines
            only the first one calls it, whose process then keeps the lock for all of them.
        at_end: called with the run's directory.

    Returns:
        The run's directory.

    Raises:
        SpecError: the machines were given different declarations.
        RunFailed: a rank failed, or the job could not be submitted.
        LaunchError: a machine did not join, or another attempt at the run is under way.
        Interrupted: a signal ended the run.
        DiskError: the run's directory cannot be written to.
    """
    with held_back(()), spec.launch.open(spec) as launch, ExitStack() as held:
        spec_path = launch.begin(lambda: _frozen(freeze, held))
        if spec.launch.nodes > 1:
            remember_file(spec_path)  # on every machine: `begin` ran on the first one only
        try:
            _start(launch, spec_path)
        finally:
            at_end(spec_path.parent)
    return spec_path.parent


def _frozen(freeze: Callable[[Lock], Path], held: ExitStack) -> Path:
    # From `queued` on, a signal must not end this process before `final_state` can say so in status.json.
    signal.pthread_sigmask(signal.SIG_BLOCK, ENDING_SIGNALS)
    try:
        return freeze(lambda run_dir: held.enter_context(hold(run_dir)))
    except OSError as error:
        rule = "Nothing has changed; start it again once that is mended."
        raise DiskError(f"cannot begin the attempt: {error.filename}: {error.strerror}. {rule}") from error


def begin(run_dir: RunDir, stored: store.StoredSpec, spec: RunSpec, *, command: list[str]) -> Path:
    """Freeze the declaration beside those of earlier attempts; the ranks read nothing else.

    For whoever holds the run's lock.

    Returns:
        The spec file.

    Raises:
        OSError: the file system reported an error. There is no new spec file.
    """
    path = run_dir.next_spec()
    run_dir.keep_reserve()
    try:
        frozen = replace(stored, config=dict(spec.config))
        remember(store.encode(frozen))  # first: a spec file that a killed process leaves can be resumed
        store.save(path, frozen)
        described = provenance.describe(spec, command=shown_command(command))
        provenance.record(run_dir.provenance, {**described, "run_id": run_dir.read_id()})
        for step in run_dir.committed_steps()[-1:]:
            provenance.note_commit(run_dir.provenance, step)
        run_dir.write_state("queued")
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return path


def _start(launch: Launch, spec_path: Path) -> None:
    with final_state(RunDir(spec_path.parent)):
        job = launch.start(spec_path)
        if job.attached:
            job.wait()
        else:
            print(f"submitted as {job.name}", flush=True)


def run_job(spec_path: Path, secrets: Mapping[str, Secret]) -> None:
    """Run what was frozen before, in a process of its own; exits with the exit code of `runner train`."""
    try:
        spec = store.read(spec_path, secrets)
        with hold(RunDir(spec_path.parent)), spec.launch.open(spec) as launch:
            _start(launch, launch.begin(lambda: spec_path))
    except RunnerError as error:
        print(f"{error}", file=sys.stderr, flush=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(Interrupted.exit_code)
