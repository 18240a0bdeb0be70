"""A run read back from its directory, as data: nothing that the directory names is imported, nothing is unpickled."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, final

from runner.config import provenance, store
from runner.config.damage import Damaged, warn
from runner.config.failure import Failure, read_failure
from runner.config.records import damaged_lines, records
from runner.config.run_dir import RunDir
from runner.errors import CheckpointError
from runner.protocols import Outcome
from runner.storage.history import manifests

__all__ = ["RunRecord", "SavedCheckpoint", "Status"]

Column = list[int | float | None]


class Status(NamedTuple):
    """What status.json says."""

    state: str
    """queued | running | done | failed | preempted."""
    step: int
    """Optimizer steps done."""
    metrics: Mapping[str, float]
    """The latest value of each metric."""


class SavedCheckpoint(NamedTuple):
    """A committed checkpoint."""

    path: Path
    step: int
    position: int
    """Items that the run had consumed."""
    world_size: int
    """How many ranks wrote it."""
    metrics: Mapping[str, float | None]
    """The latest value of each metric when it was saved."""


@final
@dataclass(frozen=True)
class RunRecord:
    """A run's directory, read. Each property is read when it is first asked for, and then kept; load the run again for
    what has happened since.
    """

    path: Path
    """The run's directory."""

    @cached_property
    def status(self) -> Status:
        """The run's state, step and latest metrics."""
        return Status(**self._run_dir.read_status())

    @cached_property
    def outcome(self) -> Outcome | None:
        """How the newest attempt ended; None if it has not ended, or was killed without a word."""
        return next((outcome for outcome in Outcome if outcome.value == self.status.state), None)

    @cached_property
    def metrics(self) -> dict[str, Column]:
        """metrics.jsonl as columns of equal length, `step` and `time_s` first; None where a line lacks a metric, or had
        a value that is not finite.
        """
        if damaged := damaged_lines(self._run_dir.metrics):
            warn(f"{self._run_dir.metrics}: {len(damaged)} damaged lines are left out.")
        lines = list(records(self._run_dir.metrics))
        names = dict.fromkeys(name for line in lines for name in line)
        return {name: [_number(line.get(name)) for line in lines] for name in names}

    @cached_property
    def config(self) -> dict[str, Any]:
        """The declaration of the newest attempt, as plain dicts and lists; `*** from SOURCE` in place of secrets.

        Raises:
            RunnerError: no spec file is whole.
        """
        return self._stored.config

    @cached_property
    def source(self) -> store.Composition:
        """What that declaration was composed from: recipe, overrides, the option of each group."""
        return self._stored.source

    @cached_property
    def checkpoints(self) -> list[SavedCheckpoint]:
        """The committed checkpoints, oldest commit first. One whose manifest cannot be read is left out, with a
        warning.
        """
        found = []
        for path, manifest in reversed(manifests(self._run_dir.checkpoints).items()):
            if isinstance(manifest, CheckpointError):
                warn(str(manifest))
                continue
            step, position, world_size = manifest.step, manifest.position, manifest.world_size
            found.append(SavedCheckpoint(path, step, position, world_size, manifest.metrics))
        return found

    @cached_property
    def failures(self) -> list[Failure]:
        """The reports of failed ranks, of all attempts, oldest first."""
        found = []
        for path in self._run_dir.failures.glob("*.json"):
            try:
                found.append(read_failure(path))
            except Damaged as damaged:
                warn(str(damaged))
        return sorted(found, key=lambda failure: failure.time_ns)

    @cached_property
    def attempts(self) -> list[dict[str, Any]]:
        """provenance.json: versions, platform, git commit, command line and hashes of hooks of each attempt.

        Raises:
            Damaged: the file does not hold that.
        """
        return provenance.read(self._run_dir.provenance)

    @property
    def _run_dir(self) -> RunDir:
        return RunDir(self.path)

    @cached_property
    def _stored(self) -> store.StoredSpec:
        return store.load_newest(self._run_dir)[1]


def _number(value: object) -> int | float | None:
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None
