"""The group `tracker`.

An open tracker records numbers. For everything else it implements one or more of the narrow protocols below; the engine
looks for them once, when the tracker is opened.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, final, runtime_checkable

from runner.protocols.media import Image, Table
from runner.protocols.part import Part
from runner.protocols.run import Outcome


@final
@dataclass(frozen=True, kw_only=True)
class RunInfo:
    """Information about the run, for a tracker to open."""

    run_dir: Path
    """The run's directory; a tracker writes only to its own file or subdirectory in it."""
    run_id: str
    """The same in all attempts of the run, and different for every run: 16 letters and digits."""
    name: str
    """The recipe's `name`."""
    config: Mapping[str, Any]
    """The composed configuration: plain dicts, lists and scalars."""
    step: int
    """The step after which this attempt continues; 0 at first. A tracker must drop records of later steps."""


class TrackerLog(Protocol):
    """An open tracker, on rank 0 only.

    If a method raises, the engine logs the first error and continues: no tracker ends a run.
    """

    def log(self, values: Mapping[str, float], *, step: int) -> None:
        """Record the values of an optimizer step; they always include `time_s`, the seconds of training."""
        ...

    def close(self, outcome: Outcome) -> None:
        """Flush, record the outcome of the attempt, and close."""
        ...


class Tracker(Part, Protocol):
    """Where measurements are recorded, in addition to metrics.jsonl."""

    def open(self, run: RunInfo) -> TrackerLog:
        """Begin the run, or continue it after `run.step`. Called on rank 0.

        Raises:
            RunnerError: its configuration cannot work. This ends the run before its first step.
        """
        ...


@runtime_checkable
class LogsImages(Protocol):
    """A tracker that supports images."""

    def log_images(self, images: Mapping[str, Image], *, step: int) -> None:
        """Record images by name."""
        ...


@runtime_checkable
class LogsTables(Protocol):
    """A tracker that supports tables."""

    def log_tables(self, tables: Mapping[str, Table], *, step: int) -> None:
        """Record tables by name."""
        ...


@runtime_checkable
class LogsText(Protocol):
    """A tracker that supports text."""

    def log_text(self, texts: Mapping[str, str], *, step: int) -> None:
        """Record texts by name."""
        ...


@runtime_checkable
class LogsArtifacts(Protocol):
    """A tracker that stores files."""

    def log_artifact(self, path: Path, *, name: str, kind: str, step: int) -> None:
        """Store a file, or a directory with all its content."""
        ...


@runtime_checkable
class HasHandle(Protocol):
    """A tracker that gives access to an object of its library."""

    @property
    def handle(self) -> Any:
        """The library's object, for example wandb's Run."""
        ...
