"""`runner resume`: a run's own declaration, with overrides that keep its meaning, launched again in its directory."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from runner.cli import attempt
from runner.cli.arguments import Parser, split_words
from runner.compose.overrides import Overridden, apply_overrides
from runner.config import provenance, store
from runner.config.nearest import did_you_mean, listed
from runner.config.read import read
from runner.config.run_dir import RunDir
from runner.config.run_spec import RunSpec
from runner.errors import Fault, SpecError
from runner.storage.history import choose

__all__ = ["main"]

MEANING = ("model", "data", "loss", "run.seed", "loader.shuffle")
"""What makes a run this run and not another; a key covers what is inside it. So do the
items of a step, as derived: batch.items."""
PLACE = ("name", "run.dir")
"""What the directory itself says."""


def main(argv: list[str]) -> int:
    """Continue a run.

    Raises:
        SpecError: no run, overrides that cannot be applied, or changes of what the run means.
        CheckpointError: the checkpoint chosen with --from is corrupted.
        RunFailed: a rank failed.
        Interrupted: a signal ended the run.
    """
    parser = Parser(prog="runner resume", add_help=False, allow_abbrev=False)
    parser.add_argument("words", nargs="*")
    parser.add_argument("--allow", action="append", default=[])
    parser.add_argument("--from", dest="resume_from")
    found = parser.parse_intermixed_args(argv)
    directory, overrides = split_words(found.words, prog="runner resume", first="DIR")
    run_dir = _run_dir(Path(directory))
    changed = apply_overrides(_without_stop(store.load(run_dir.specs()[-1])), overrides)
    _check_checkpoint(run_dir, found.resume_from)
    spec = _read(changed, before=store.read(run_dir.specs()[-1]), allowed=found.allow)
    _warn_of_changed_hooks(run_dir, spec)

    def freeze() -> Path:
        if found.resume_from is not None:
            choose(run_dir.checkpoints, found.resume_from)
        return attempt.begin(run_dir, changed.stored, spec, command=["runner", "resume", *argv])

    attempt.run(spec, freeze)
    return 0


def _run_dir(path: Path) -> RunDir:
    run_dir = RunDir(path.absolute())
    if not run_dir.specs():
        what = "is not a run's directory: it has no spec.yaml" if path.is_dir() else "is no directory"
        raise SpecError(
            Fault(
                key="DIR",
                message=f"{path} {what}. `runner train` prints a run's directory as its last line.",
            )
        )
    return run_dir


def _without_stop(stored: store.StoredSpec) -> store.StoredSpec:
    """Where the earlier attempt was told to stop, this one goes on."""
    config = {**stored.config, "run": {**stored.config["run"], "stop_at_step": None}}
    return replace(stored, config=config)


def _check_checkpoint(run_dir: RunDir, name: str | None) -> None:
    if name is None or (run_dir.checkpoints / name).is_dir():
        return
    there = [path.name for path in run_dir.checkpoints.glob("step_*")] if run_dir.checkpoints.is_dir() else []
    rule = f"there is no checkpoint {name!r}.{did_you_mean(name, there)} There are: {listed(there)}."
    raise SpecError(Fault(key="--from", message=rule, origin="the command line"))


def _read(changed: Overridden, *, before: RunSpec, allowed: Sequence[str]) -> RunSpec:
    """The new spec; its faults and the refused changes together."""
    stored = changed.stored
    refused = [
        *_refused(store.diff(before.config, stored.config), allowed=allowed),
        *_refused_items(before.batch.items, _items(stored), allowed=allowed),
    ]
    return read(
        stored.config,
        import_roots=stored.import_roots,
        origin=changed.origin,
        known_faults=[*changed.faults, *refused],
    )


def _refused(changes: Mapping[str, tuple[object, object]], *, allowed: Sequence[str]) -> Iterator[Fault]:
    for key, (was, becomes) in changes.items():
        if _covered(key, PLACE):
            rule = f"{was!r} cannot become {becomes!r}: a run stays where it is. Train a new one with the new {key}."
            yield Fault(key=key, message=rule)
        elif _covered(key, MEANING) and not _covered(key, allowed):
            yield _refusal(key, f"{was!r} would become {becomes!r}")


def _refused_items(was: int, becomes: int | None, *, allowed: Sequence[str]) -> Iterator[Fault]:
    if becomes not in (None, was) and not _covered("batch.items", allowed):
        yield _refusal("batch.items", f"{was} items a step would become {becomes}")


def _items(stored: store.StoredSpec) -> int | None:
    """Items of one step, however they are derived; None if they cannot be, which reading the whole will tell."""
    try:
        return read(stored.config, import_roots=stored.import_roots, check=False).batch.items
    except SpecError:
        return None


def _covered(key: str, keys: Sequence[str]) -> bool:
    return any(key == other or key.startswith(f"{other}.") for other in keys)


def _refusal(key: str, change: str) -> Fault:
    rule = f"{change}, which makes it another run."
    return Fault(key=key, message=f"{rule} Keep it, or say that you mean it: --allow {key}")


def _warn_of_changed_hooks(run_dir: RunDir, spec: RunSpec) -> None:
    attempts = provenance.read(run_dir.provenance)
    recorded = attempts[-1]["hooks"] if attempts else {}
    for file, digest in provenance.hook_hashes(spec).items():
        if recorded.get(file, digest) != digest:
            print(
                f"warning: {file} has changed since the last attempt at this run.",
                file=sys.stderr,
            )
