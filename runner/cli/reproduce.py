"""Trains a run again from its record, in a new directory, and compares the two."""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from runner.cli.arguments import run_words
from runner.cli.launched import prepare_process, print_directory
from runner.composition.origins import COMMAND_LINE, key_of
from runner.composition.overrides import Overridden, apply_overrides
from runner.config import provenance, store
from runner.config.damage import Damaged, warn
from runner.config.masking import is_record_at
from runner.config.run_dir import RunDir
from runner.config.run_lock import check_free
from runner.config.run_spec import RunSpec
from runner.errors import Fault, NotReproducedError, RunnerError, SpecError
from runner.runs.again import train_stored
from runner.runs.trust import require_trust
from runner.sharing.agreement import agreement
from runner.sharing.changes import changed_hooks, changed_surroundings

__all__ = ["reproduce"]

PLACE = ("run.dir", "run.stop_at_step")
"""Keys that say where an attempt went and when it ended, and not what it computed."""


def reproduce(found: argparse.Namespace) -> int:
    """Train a run again, and compare.

    Raises:
        SpecError: the directory is not a run's, did not begin on this account, or its hooks have changed.
        NotReproducedError: the two runs differ.
        RunFailed: the new run failed.
        Interrupted: a signal ended it.
    """
    prepare_process()
    run_dir, overrides = run_words(found, prog="runner reproduce")
    check_free(run_dir)
    path, stored = store.load_newest(run_dir)
    require_trust(path, trust=found.trust, verb="reproduce")
    changed = _declared(stored, overrides, stop=_stop(run_dir), new_dir=found.new_dir)
    spec = changed.read()
    _refuse(spec, run_dir, changed_hooks_allowed=found.changed_hooks)
    for line in _warnings(run_dir, path):
        warn(line)
    new = train_stored(changed.stored, spec, command=found.command, at_end=print_directory)
    return _compare(run_dir, new, spec)


def _stop(run_dir: RunDir) -> int | None:
    """The last step that the run has recorded, after which the new one stops as well.

    Raises:
        SpecError: there is none.
    """
    step: int = run_dir.recorded_status()["step"]
    if not step:
        rule = f"{run_dir.path} has not recorded a step, so there is nothing to compare with."
        raise SpecError(Fault(key="DIR", message=rule))
    return step if run_dir.committed_steps() else None  # a run that saves nothing cannot be stopped


def _declared(
    stored: store.StoredSpec, overrides: Sequence[str], *, stop: int | None, new_dir: Path | None
) -> Overridden:
    """The declaration of the new run.

    Raises:
        SpecError: an override changes something else than a secret.
    """
    locked = [key_of(text) for text in overrides if not is_record_at(stored.config, key_of(text))]
    rule = "is part of the record: only secrets, which it does not hold, can be given."
    faults = [Fault(key=key, message=rule, origin=COMMAND_LINE) for key in locked]
    if faults:
        raise SpecError(*faults)
    run: dict[str, Any] = dict(stored.config["run"])
    stop = stop if stop is not None and stop < run["steps"] else None
    run |= {"stop_at_step": stop, "dir": None if new_dir is None else str(new_dir.absolute())}
    moved = replace(stored, config={**stored.config, "run": run})
    return apply_overrides(moved, overrides) if overrides else Overridden(moved, (), ())


def _refuse(spec: RunSpec, run_dir: RunDir, *, changed_hooks_allowed: bool) -> None:
    if spec.launch.nodes > 1:
        rule = f"a run on {spec.launch.nodes} machines is not trained again by one command. Train its recipe there."
        raise SpecError(Fault(key="launch.nodes", message=rule))
    changed = changed_hooks(_last_attempt(run_dir), spec)
    if changed and not changed_hooks_allowed:
        rule = "is not the source that the run was trained with. Put that back, or train with this one: --changed-hooks"
        raise SpecError(*(Fault(key="hooks", message=f"{file} {rule}", origin=_commit(run_dir)) for file in changed))
    for file in changed:
        warn(f"{file} is not the source that the run was trained with.")


def _last_attempt(run_dir: RunDir) -> Mapping[str, Any]:
    attempts = provenance.read(run_dir.provenance)
    return attempts[-1] if attempts else {}


def _commit(run_dir: RunDir) -> str:
    git = _last_attempt(run_dir).get("git")
    return f"commit {git.get('commit')}" if isinstance(git, Mapping) else ""


def _warnings(run_dir: RunDir, newest: Path) -> Iterator[str]:
    """What may keep the two runs from being equal."""
    yield from (f"{line}." for line in changed_surroundings(_last_attempt(run_dir)))
    declared = store.load(newest).config
    for path in run_dir.specs():
        if path == newest:
            continue
        try:
            earlier = store.load(path).config
        except Damaged as damaged:
            yield f"{damaged}"
            continue
        keys = [key for key in store.diff(earlier, declared) if key not in PLACE]
        if keys:
            yield f"{path.name} differs in {', '.join(keys)}: the new run is trained with {newest.name} from step 0."


def _compare(before: RunDir, after: RunDir, spec: RunSpec) -> int:
    state = after.read_status()["state"]
    if state in ("queued", "running"):
        rule = "was submitted and is not compared: launchers that return at once cannot reproduce a run."
        raise RunnerError(f"{after.path} {rule}")
    found = agreement(before, after)
    print("\n".join(found.lines()), flush=True)
    if found.is_bitwise:
        print("reproduced: the two runs are equal, bit for bit", flush=True)
        return 0
    hint = "" if spec.run.deterministic else " Kernels may differ between runs; run.deterministic=true rules that out."
    raise NotReproducedError(f"not reproduced: {after.path} differs from {before.path}.{hint}")
