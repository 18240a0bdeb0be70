"""Mending the files of a run's directory before the next attempt reads them: what is damaged is set aside, by name."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from runner import durable
from runner.config import provenance, store
from runner.config.damage import Damaged, free_name, read_json, set_aside, warn
from runner.config.records import damaged_lines
from runner.config.run_dir import ID, RunDir, status_fields
from runner.errors import DiskError

__all__ = ["remove_unfinished", "repair"]

BLOCK = 1 << 20


def repair(run_dir: RunDir) -> None:
    """Set aside every file that is damaged, rebuild what can be rebuilt, and say so: one line on stderr each.

    For whoever holds the run's lock. Files that are whole are only read.

    Raises:
        DiskError: a file cannot be read.
        OSError: one cannot be written.
    """
    _repair_metrics(run_dir.metrics)
    _repair_status(run_dir)
    attempts = _repair_provenance(run_dir.provenance)
    known = [str(attempt["run_id"]) for attempt in attempts if "run_id" in attempt]
    _repair_id(run_dir, [run_id for run_id in known if ID.fullmatch(run_id)])
    _repair_guard(run_dir)
    _repair_specs(run_dir)


def remove_unfinished(run_dir: RunDir) -> None:
    """Remove the files that a killed attempt was about to rename. Only for whoever holds the run's lock."""
    checkpoints = [run_dir.checkpoints / f"step_{step}" for step in run_dir.committed_steps()]
    for directory in (run_dir.path, run_dir.failures, *checkpoints):
        durable.remove_unfinished(directory)


def _repair_status(run_dir: RunDir) -> None:
    try:
        read_json(run_dir.status, status_fields)
    except FileNotFoundError:
        return
    except Damaged as damaged:
        rebuilt = run_dir.recorded_status()
        _report(damaged, set_aside(run_dir.status), f"step {rebuilt['step']} is the last in the other files")
        run_dir.write_status(**rebuilt)


def _repair_provenance(path: Path) -> list[dict[str, object]]:
    try:
        return provenance.read(path)
    except Damaged as damaged:
        _report(damaged, set_aside(path), "the list of attempts begins again")
        return []


def _repair_id(run_dir: RunDir, known: Sequence[str]) -> None:
    try:
        run_dir.check_id()
    except FileNotFoundError:
        if known:
            run_dir.write_id(known[-1])
    except Damaged as damaged:
        aside = set_aside(run_dir.id)
        if known:
            run_dir.write_id(known[-1])
        source = (
            "provenance.json has the same id" if known else "trackers will show the next attempt as a run of its own"
        )
        _report(damaged, aside, source)


def _repair_guard(run_dir: RunDir) -> None:
    try:
        run_dir.read_guard()
    except Damaged as damaged:
        _report(damaged, set_aside(run_dir.guard), "a new one begins with the next step that is not finite")


def _repair_specs(run_dir: RunDir) -> None:
    """Set aside damaged specs that are newer than a whole one. If none is whole, all stay: a person has to choose."""
    newest, damaged = store.find_newest(run_dir)
    if newest is not None:
        for newer in damaged:
            rule = f"the run continues with {newest[0].name}; give overrides of later attempts again"
            _report(newer, set_aside(newer.path), rule)


def _repair_metrics(path: Path) -> None:
    try:
        lines = damaged_lines(path)
    except OSError as error:
        raise DiskError(f"{path} cannot be read: {error.strerror}.") from error
    if lines:
        aside = free_name(path)
        _move(path, lines, aside)
        warn(f"{path}: {len(lines)} damaged lines are moved to {aside.name}; those around them are kept.")


def _report(damaged: Damaged, aside: Path, then: str) -> None:
    warn(f"{damaged} It is set aside as {aside.name}; {then}.")


def _move(path: Path, lines: Sequence[tuple[int, int]], aside: Path) -> None:
    """Move these parts of a file to another one. The file is replaced in one rename."""
    partial = path.with_name(f"{path.name}.partial-{os.getpid()}")
    try:
        with path.open("rb") as source, partial.open("xb") as kept, aside.open("xb") as moved:
            begin = 0
            for start, end in (*lines, (path.stat().st_size,) * 2):
                _copy(source, kept, start - begin)
                _copy(source, moved, end - start)
                begin = end
            for file in (kept, moved):
                file.flush()
                os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        aside.unlink(missing_ok=True)
        raise
    durable.sync_directory(path.parent)


def _copy(source: BinaryIO, target: BinaryIO, size: int) -> None:
    while size:
        block = source.read(min(size, BLOCK))
        target.write(block)
        size -= len(block)
