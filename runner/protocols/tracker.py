"""The group `tracker`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from runner.protocols.part import Part


class TrackerLog(Protocol):
    """An open tracker. Lives on rank 0 only."""

    def log(self, values: Mapping[str, float], *, step: int) -> None:
        """Record what was measured at an optimizer step."""
        ...

    def close(self) -> None:
        """Flush and let go."""
        ...


class Tracker(Part, Protocol):
    """Where measurements go."""

    def open(self, run_dir: Path, *, config: Mapping[str, Any], step: int) -> TrackerLog:
        """Begin, or continue after `step` (0 at first): what was recorded beyond it is dropped. Called on rank 0."""
        ...
