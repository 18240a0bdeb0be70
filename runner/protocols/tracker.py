"""The group `tracker`.

An open tracker takes numbers. Whatever else it can do, it says by implementing one of the narrow protocols below; the
engine looks for them once, when the tracker is opened.
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
    """What a tracker is told about the run that it opens for."""

    run_dir: Path
    """The run's directory; a tracker's files belong into a directory or file of its own in there."""
    run_id: str
    """The same in all attempts of the run, and different for every run: 16 letters and digits."""
    name: str
    """The recipe's `name`."""
    config: Mapping[str, Any]
    """The composed configuration: plain dicts, lists and scalars."""
    step: int
    """The step after which this attempt continues; 0 at first. What was recorded beyond it is to be dropped."""


class TrackerLog(Protocol):
    """An open tracker. It lives on rank 0 only.

    If a method raises, the engine reports the first time in the log and goes on: no tracker ends a run.
    """

    def log(self, values: Mapping[str, float], *, step: int) -> None:
        """Record what was measured at an optimizer step; `time_s`, seconds of training, is always among it."""
        ...

    def close(self, outcome: Outcome) -> None:
        """Flush, say how the attempt ended, and let go."""
        ...


class Tracker(Part, Protocol):
    """Where measurements go, beside metrics.jsonl."""

    def open(self, run: RunInfo) -> TrackerLog:
        """Begin the run, or continue it after `run.step`. Called on rank 0.

        Raises:
            RunnerError: it cannot work as it is configured. This ends the run before its first step.
        """
        ...


@runtime_checkable
class LogsImages(Protocol):
    """A tracker that shows pictures."""

    def log_images(self, images: Mapping[str, Image], *, step: int) -> None:
        """Record pictures, by name."""
        ...


@runtime_checkable
class LogsTables(Protocol):
    """A tracker that shows tables."""

    def log_tables(self, tables: Mapping[str, Table], *, step: int) -> None:
        """Record tables, by name."""
        ...


@runtime_checkable
class LogsText(Protocol):
    """A tracker that shows text."""

    def log_text(self, texts: Mapping[str, str], *, step: int) -> None:
        """Record pieces of text, by name."""
        ...


@runtime_checkable
class LogsArtifacts(Protocol):
    """A tracker that keeps files."""

    def log_artifact(self, path: Path, *, name: str, kind: str, step: int) -> None:
        """Keep a file, or a directory with all that is in it."""
        ...


@runtime_checkable
class HasHandle(Protocol):
    """A tracker whose library has an object that a user may want to call."""

    @property
    def handle(self) -> Any:
        """That object."""
        ...
