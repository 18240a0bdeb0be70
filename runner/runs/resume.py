"""Continues a run: launches its own declaration, with overrides that do not make it another run, in its directory."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path

from runner.composition.overrides import Overridden, apply_overrides
from runner.config import provenance, store
from runner.config.masking import collected, hidden
from runner.config.named_path import is_directory
from runner.config.nearest import did_you_mean, listed
from runner.config.read import read
from runner.config.run_dir import RunDir
from runner.config.run_lock import check_free
from runner.config.run_spec import RunSpec
from runner.errors import Fault, SpecError
from runner.runs import attempt
from runner.runs.start import FROM_0, check_start
from runner.runs.trust import require_trust
from runner.storage.history import choose

__all__ = ["resume"]

IDENTITY = ("model", "models.*.model", "models.*.frozen", "phases", "data", "loss", "run.seed", "order")
"""Keys, with all keys inside them, whose change makes it another run; `*` stands for any name. So does a change of
batch.items, also where it is derived, and of the number of replicas that take steps of their own."""
PLACE = ("name", "run.dir")
"""Keys that name the run's directory."""


def resume(
    run_dir: RunDir,
    overrides: Sequence[str],
    *,
    allow: Sequence[str] = (),
    start: str | None = None,
    trust: bool = False,
    command: list[str],
    at_end: attempt.AtEnd,
) -> None:
    """Continue a run and wait for its end. Main thread only.

    Args:
        run_dir: the run's directory.
        overrides: in Hydra's grammar.
        allow: keys that may change although they define the run.
        start: the checkpoint to start from, such as step_40; 0 = from step 0; None = the newest.
        trust: accept a run that did not begin on this account.
        command: what provenance.json records as the command line.
        at_end: called with the run's directory when the attempt has ended, unless it did not begin.

    Raises:
        SpecError: the run did not begin on this account; an override cannot be applied, or it would make this another
            run.
        CheckpointError: the checkpoint chosen with `start` is corrupted, or the run's checkpoints are gone.
        LaunchError: another attempt at the run is under way.
        RunFailed: a rank failed.
        Interrupted: a signal ended the run.
    """
    print(f"directory: {run_dir.path}", file=sys.stderr, flush=True)
    check_free(run_dir)
    path, stored = store.load_newest(run_dir)
    require_trust(path, trust=trust, verb="resume")
    changed = apply_overrides(_without_stop(stored), overrides)
    _check_checkpoint(run_dir, start)
    before = store.read(path, collected(changed.stored.config), keep=True)
    check_start(run_dir, before.checkpoint, from_0=start in FROM_0)
    spec = _read(changed, before=before, allowed=allow)
    _warn_of_changed_hooks(run_dir, spec)

    def freeze(lock: attempt.Lock) -> Path:
        lock(run_dir)
        if start is not None and start not in FROM_0:
            choose(run_dir.checkpoints, start)
        return attempt.begin(run_dir, changed.stored, spec, command=command)

    attempt.run(spec, freeze, at_end=at_end)


def _without_stop(stored: store.StoredSpec) -> store.StoredSpec:
    """Without the stop of the earlier attempt, which this one continues beyond."""
    run = stored.config.get("run")
    config = {**stored.config, "run": {**run, "stop_at_step": None}} if isinstance(run, dict) else stored.config
    return replace(stored, config=config)


def _check_checkpoint(run_dir: RunDir, name: str | None) -> None:
    if name is None or name in FROM_0 or is_directory(run_dir.checkpoints / name):
        return
    there = [f"step_{step}" for step in run_dir.committed_steps()]
    rule = f"there is no checkpoint {name!r}.{did_you_mean(name, there)} There are: {listed(there)}."
    raise SpecError(Fault(key="--from", message=rule, origin="the command line"))


def _read(changed: Overridden, *, before: RunSpec, allowed: Sequence[str]) -> RunSpec:
    """The new spec; its faults and the refused changes together."""
    stored = changed.stored
    refused = [
        *_refused(store.diff(before.config, hidden(stored.config)), allowed=allowed),
        *_refused_numbers(before, _unchecked(stored), allowed=allowed),
    ]
    return changed.read(refused=refused)


def _refused(changes: Mapping[str, tuple[object, object]], *, allowed: Sequence[str]) -> Iterator[Fault]:
    for key, (was, becomes) in changes.items():
        if _covered(key, PLACE):
            rule = f"{was!r} cannot become {becomes!r}: a run stays where it is. Train a new one with the new {key}."
            yield Fault(key=key, message=rule)
        elif _covered(key, IDENTITY) and not _covered(key, allowed):
            yield _refusal(key, f"{was!r} would become {becomes!r}")


def _refused_numbers(was: RunSpec, becomes: RunSpec | None, *, allowed: Sequence[str]) -> Iterator[Fault]:
    """Refuse what follows from several keys together: the items of a step, and the replicas that take their own."""
    if becomes is None:
        return
    items, new_items = was.batch.items, becomes.batch.items
    if new_items != items and not _covered("batch.items", allowed):
        yield _refusal("batch.items", f"{items} items a step would become {new_items}")
    replicas, new_replicas = _independent_replicas(was), _independent_replicas(becomes)
    if new_replicas != replicas and not _covered("strategy", allowed):
        yield _refusal("strategy", f"{_steps_of(replicas)} would become {_steps_of(new_replicas)}")


def _unchecked(stored: store.StoredSpec) -> RunSpec | None:
    """The new spec, with its faults; None if it cannot be built, which reading the whole will tell."""
    try:
        return read(stored.config, import_roots=stored.import_roots, check=False, keep=True)
    except SpecError:
        return None


def _independent_replicas(spec: RunSpec) -> int:
    try:
        axes = spec.strategy.axes(spec.world_size)
    except ValueError:  # a number of ranks that the strategy cannot divide, which reading the whole will tell
        return 1
    return axes.size(axes.independent)


def _steps_of(replicas: int) -> str:
    return f"{replicas} replicas with steps of their own" if replicas > 1 else "one step of all ranks together"


def _covered(key: str, keys: Sequence[str]) -> bool:
    parts = key.split(".")
    return any(
        len(other) <= len(parts) and all(fnmatchcase(*pair) for pair in zip(parts, other, strict=False))
        for other in (one.split(".") for one in keys)
    )


def _refusal(key: str, change: str) -> Fault:
    rule = f"{change}, which makes it another run."
    return Fault(key=key, message=f"{rule} Keep it, or say that you mean it: --allow {key}")


def _warn_of_changed_hooks(run_dir: RunDir, spec: RunSpec) -> None:
    attempts = provenance.read(run_dir.provenance)
    recorded = attempts[-1].get("hooks", {}) if attempts else {}
    for file, digest in provenance.hook_hashes(spec).items():
        if recorded.get(file, digest) != digest:
            print(
                f"warning: {file} has changed since the last attempt at this run.",
                file=sys.stderr,
            )
